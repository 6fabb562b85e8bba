"""The oracle itself, on problems small enough to solve by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.exhaustive import cheapest_by_enumeration
from planner.problem import Ceiling, Problem, Segment

THREE = Problem(
    counts=(1, 2),
    source=0,
    unit_cost=np.array([[4.0, 4.0, 4.0], [1.0, 1.0, 1.0]]),
    stage_cost=np.zeros(2),
    hop_cost=np.array([[9.0, 1.0], [9.0, 0.5]]),
    hop_cost_per_byte=np.array([[math.inf, 1.0], [1.0, 0.5]]),
    boundary_bytes=np.array([1.0, 2.0, 0.0]),
    return_cost=np.array([0.0, 0.25]),
    unit_bytes=np.ones((2, 3), dtype=np.int64),
    stage_bytes=np.zeros(2, dtype=np.int64),
    memory_bytes=np.array([3, 2]),
)
"""A slow source, two fast devices that hold two layers each."""


@pytest.mark.parametrize(
    ("memory", "segments", "cost"),
    [
        ((3, 2), ((0, 0, 1), (1, 1, 3)), 4 + (1 + 1) + 2 + 0.25),
        ((3, 1), ((0, 0, 1), (1, 1, 2), (1, 2, 3)), 4 + 2 + 1 + (0.5 + 1) + 1 + 0.25),
        ((3, 0), ((0, 0, 3),), 12.0),
    ],
)
def test_it_finds_what_a_person_finds(
    memory: tuple[int, int], segments: tuple[tuple[int, int, int], ...], cost: float
) -> None:
    solution = cheapest_by_enumeration(replace(THREE, memory_bytes=np.array(memory)))
    assert solution is not None
    assert solution.segments == tuple(Segment(*segment) for segment in segments)
    assert solution.cost == solution.lower_bound == cost


def test_nothing_fits() -> None:
    assert cheapest_by_enumeration(replace(THREE, memory_bytes=np.array([0, 3]))) is None
    assert cheapest_by_enumeration(replace(THREE, memory_bytes=np.array([2, 0]))) is None


def test_a_ceiling_on_devices_and_on_links() -> None:
    halves = cheapest_by_enumeration(THREE, Ceiling(np.array([4.0, 1.0]), math.inf))
    assert halves is not None
    assert [segment.stop for segment in halves.segments] == [1, 2, 3]
    alone = cheapest_by_enumeration(THREE, Ceiling(np.array([12.0, 12.0]), 0.75))
    assert alone is not None
    assert alone.segments == (Segment(0, 0, 3),)


def test_both_ends_on_the_source_share_memory_and_ceiling() -> None:
    trusted = replace(THREE, hop_cost_per_byte=np.ones((2, 2)), hop_cost=np.ones((2, 2)), ends_at_source=True)
    ends = cheapest_by_enumeration(replace(trusted, memory_bytes=np.array([2, 2])))
    assert ends is not None
    assert ends.segments == (Segment(0, 0, 1), Segment(1, 1, 2), Segment(0, 2, 3))
    assert cheapest_by_enumeration(replace(trusted, memory_bytes=np.array([1, 2]))) is None
    assert cheapest_by_enumeration(trusted, Ceiling(np.array([7.0, 9.0]), math.inf)) is None


def test_of_equal_costs_the_fewest_segments_then_the_first_classes() -> None:
    free = replace(
        THREE,
        unit_cost=np.ones((2, 3)),
        hop_cost=np.zeros((2, 2)),
        hop_cost_per_byte=np.zeros((2, 2)),
        return_cost=np.zeros(2),
    )
    whole = cheapest_by_enumeration(free)
    assert whole is not None
    assert whole.segments == (Segment(0, 0, 3),)
    cut = cheapest_by_enumeration(replace(free, memory_bytes=np.array([2, 2])))
    assert cut is not None
    assert cut.segments == (Segment(0, 0, 1), Segment(1, 1, 3))
