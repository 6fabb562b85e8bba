from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agent.compute.damage_twins import Stream, philox, philox_rounds, standard_normal
from agent.compute.philox import philox4x32

# Random123's kat_vectors: philox 4x32 10.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(counter: tuple[int, ...], key: int, words: str) -> None:
    drawn = philox_rounds([np.array([word], np.uint64) for word in counter], key)
    assert " ".join(f"{word[0]:08x}" for word in drawn) == words


@given(
    seed=st.integers(0, 2**64 - 1),
    layer=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**32 - 3),
    stream=st.sampled_from(Stream),
)
def test_philox_counts_blocks_positions_layers_and_streams(
    seed: int, layer: int, position: int, stream: Stream
) -> None:
    words = philox(seed, layer, position, (2, 3), stream)
    for token in range(2):
        for block in range(3):
            expected = philox4x32((block, position + token, layer, int(stream)), (seed & 0xFFFFFFFF, seed >> 32))
            assert tuple(words[token, 4 * block : 4 * block + 4].tolist()) == expected


def test_standard_normal_is_the_inverse_of_the_distribution() -> None:
    centre_edge = int(0.075 * 2**32)
    words = np.concatenate(
        [
            np.arange(2000),
            2 ** np.arange(32),
            np.arange(centre_edge - 1000, centre_edge + 1000),
            np.arange(2**31 - 1000, 2**31 + 1000),
            np.random.default_rng(0).integers(0, 2**32, 100_000),
        ]
    ).astype(np.uint32)
    expected = stats.norm.ppf((words + 0.5) / 2**32)
    np.testing.assert_allclose(standard_normal(words), expected, rtol=2e-14, atol=0)


def test_standard_normal_is_odd_and_bounded() -> None:
    words = np.random.default_rng(1).integers(0, 2**32, 10_000).astype(np.uint32)
    np.testing.assert_array_equal(standard_normal(words), -standard_normal(~words))
    assert 6.2 < standard_normal(np.array([0xFFFFFFFF], np.uint32))[0] < 6.34
