"""Slices come to occupy a link for as long as they are meant to, and stay within their bounds whatever they take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.slice_size import FIRST_SLICE_BYTES, GROWTH, LEAST_SLICE_BYTES, MOST_SLICE_BYTES, SLICE_S, SliceSize

LEAST_S, MOST_S = 0.3, 1.6
"""Of what is meant: what a rate is learnt from has noise in it, and a least and a most size."""


@pytest.mark.parametrize("bytes_per_s", [3e5, 2.5e6, 1.2e7, 4e7])
@pytest.mark.parametrize("round_trip_s", [0.0005, 0.03, 0.2])
def test_slices_take_as_long_as_they_are_meant_to(bytes_per_s: float, round_trip_s: float) -> None:
    random = np.random.default_rng(7)
    size = SliceSize()
    took = []
    for _ in range(60):
        sent = int(size.bytes)
        took.append(sent / bytes_per_s)
        size.learn(sent, round_trip_s + took[-1] + float(random.exponential(0.001)))
    assert LEAST_S * SLICE_S < np.median(took[20:]) <= MOST_S * SLICE_S
    assert max(took) <= max(2 * MOST_S * SLICE_S, FIRST_SLICE_BYTES * GROWTH / bytes_per_s)


def test_a_link_that_becomes_slower_gets_shorter_slices_and_longer_ones_again() -> None:
    size = SliceSize()
    for rate, most in ((1.2e7, 4e5), (6e5, 2.5e4), (1.2e7, 4e5)):
        for _ in range(30):
            size.learn(int(size.bytes), 0.01 + size.bytes / rate)
        assert most / 4 < size.bytes < most


def test_short_slices_do_not_make_longer_ones_shorter() -> None:
    size = SliceSize()
    for _ in range(10):
        size.learn(int(size.bytes), 0.001 + size.bytes / 1e8)
    before = size.bytes
    for _ in range(10):
        size.learn(500, 0.004)
    assert size.bytes >= before


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(-0.01, 10.0)), max_size=60))
def test_they_stay_within_bounds(slices: list[tuple[float, float]]) -> None:
    size = SliceSize()
    assert not size.is_known
    for share, wire_s in slices:
        before = size.bytes
        size.learn(max(1, int(share * before)), wire_s)
        assert size.is_known
        assert LEAST_SLICE_BYTES <= size.bytes <= min(MOST_SLICE_BYTES, GROWTH * before)
