"""Philox against the known answers that come with Random123, and its uniform numbers against chance."""

from __future__ import annotations

import numpy as np
import pytest

from agent.compute.philox import philox4x32, uniform

ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert philox4x32(counter, key) == expected


def test_uniform_is_uniform() -> None:
    numbers = np.array([uniform(7, position, 1) for position in range(20_000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    # Chi-square with 49 degrees of freedom: 85.4 is its 99.9 % point.
    assert ((counts - 400) ** 2 / 400).sum() < 85.4
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03


def test_seed_position_and_stream_each_matter() -> None:
    base = uniform(1, 2, 3)
    assert uniform(1, 2, 3) == base
    assert (
        len({base, uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(1 << 32, 2, 3), uniform(-1, 2, 3)})
        == 6
    )
    assert uniform(1 + (1 << 64), 2, 3) == base
