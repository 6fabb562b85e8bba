"""Damage schedules, held against a split noted for every position."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.adaptive.schedule import SplitSchedule


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12))
def test_it_says_for_every_position_what_was_last_said_of_it(first: int, moves: list[tuple[int, int]]) -> None:
    schedule = SplitSchedule(first)
    expected = [first] * 50
    for position, split in moves:
        schedule.moved(position, split)
        expected[position:] = [split] * (50 - position)
    assert [schedule.at(position) for position in range(50)] == expected
    positions = [position for position, _ in schedule.entries]
    splits = [split for _, split in schedule.entries]
    assert positions == sorted(set(positions))
    assert positions[0] == 0
    assert all(one != other for one, other in pairwise(splits))
    assert schedule.split == expected[-1]


def test_no_position_is_before_the_first() -> None:
    with pytest.raises(ValueError, match="position -1"):
        SplitSchedule(3).moved(-1, 4)
