"""Lists of numbers as options are given them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from edgectl.quality.number_lists import MAX_NUMBERS, numbers


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=20, unique=True))
def test_what_is_written_is_read(values: list[int]) -> None:
    text = " , ".join(map(str, values))
    assert numbers("--x", text, int) == tuple(values)
    assert numbers("--x", text, float) == tuple(map(float, values))


def test_ranges() -> None:
    assert numbers("--m", "0.5..3", float) == (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    assert numbers("--splits", "4..1", int) == (4, 3, 2, 1)
    assert numbers("--splits", "1..31", int) == (1, 7, 13, 19, 25, 31)
    assert numbers("--splits", "3..3,3,5", int) == (3, 5)


@pytest.mark.parametrize("text", ["", "1,,2", "a", "1.5", "1..2..3", "nan", "1 2", "..", "0x10"])
def test_no_integers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--splits .* is no number"):
        numbers("--splits", text, int)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf..1", "1e999"])
def test_no_finite_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="is no number"):
        numbers("--loss", text, float)


def test_more_than_anybody_wants() -> None:
    with pytest.raises(ConfigError, match="--x: 1001 numbers, at most 1000"):
        numbers("--x", ",".join(map(str, range(MAX_NUMBERS + 1))), int)
