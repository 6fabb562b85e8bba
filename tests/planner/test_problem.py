"""Problems refuse what does not fit together; placements are costed term by term and held to every rule."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.problem import Problem, Segment, Solution
from tests.fakes.random_problems import random_problem


def three_devices(**changes: object) -> Problem:
    """A source and a class of two; layers cost 1, 2, 3, 4 on the source and half on the others. 10 bytes a layer."""
    unit_cost = np.array([[1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 1.5, 2.0]])
    problem = Problem(
        counts=(1, 2),
        source=0,
        unit_cost=unit_cost,
        stage_cost=np.array([0.25, 0.5]),
        hop_cost=np.array([[0.0, 7.0], [9.0, 5.0]]),
        hop_cost_per_byte=np.array([[0.0, 2.0], [4.0, 3.0]]),
        boundary_bytes=np.array([1.0, 10.0, 100.0, 1000.0]),
        return_cost=np.array([0.0, 6.0]),
        unit_bytes=np.full((2, 4), 10),
        stage_bytes=np.array([1, 2]),
        memory_bytes=np.array([41, 22]),
    )
    return replace(problem, **changes)  # type: ignore[arg-type]


def test_a_placement_costs_its_stages_its_hops_and_the_way_back() -> None:
    route = (Segment(0, 0, 1), Segment(1, 1, 2), Segment(1, 2, 4))
    stages = (0.25 + 1.0) + (0.5 + 1.0) + (0.5 + 3.5)
    hops = (7.0 + 1 * 2.0) + (5.0 + 10 * 3.0)
    assert three_devices().cost_of(route) == pytest.approx(stages + hops + 6.0)
    assert three_devices().cost_of((Segment(0, 0, 4),)) == pytest.approx(10.25)


@pytest.mark.parametrize(
    ("segments", "why"),
    [
        ((), "nothing is covered"),
        ((Segment(0, 0, 3),), "layer 3 is missing"),
        ((Segment(0, 0, 2), Segment(1, 3, 4)), "a gap"),
        ((Segment(0, 0, 3), Segment(1, 2, 4)), "an overlap"),
        ((Segment(1, 0, 2), Segment(1, 2, 4)), "it does not begin at the source"),
        ((Segment(0, 0, 2), Segment(0, 2, 4)), "the source is one device"),
        ((Segment(0, 0, 1), Segment(1, 1, 4)), "30 bytes do not fit beside 2 in 22"),
        ((Segment(0, 0, 1), Segment(1, 1, 2), Segment(1, 2, 3), Segment(1, 3, 4)), "a class of two, used three times"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_placement_that_breaks_a_rule_costs_infinitely_much(segments: tuple[Segment, ...], why: str) -> None:
    assert not three_devices().allows(segments), why
    assert math.isinf(three_devices().cost_of(segments))


def test_an_exact_fit_is_a_fit() -> None:
    assert three_devices().allows((Segment(0, 0, 4),))
    assert not three_devices(memory_bytes=np.array([40, 22])).allows((Segment(0, 0, 4),))
    assert three_devices().allows((Segment(0, 0, 2), Segment(1, 2, 4)))


def test_with_both_ends_at_the_source_its_segments_fit_together() -> None:
    both = (Segment(0, 0, 1), Segment(1, 1, 3), Segment(0, 3, 4))
    assert not three_devices().allows(both)
    assert three_devices(ends_at_source=True, memory_bytes=np.array([21, 22])).allows(both)
    assert not three_devices(ends_at_source=True, memory_bytes=np.array([20, 22])).allows(both)
    assert three_devices(ends_at_source=True).allows((Segment(0, 0, 4),))
    assert not three_devices(ends_at_source=True).allows((Segment(0, 0, 2), Segment(1, 2, 4)))


@pytest.mark.parametrize("seed", range(50))
def test_ranges_cost_and_weigh_what_their_layers_do(seed: int) -> None:
    problem = random_problem(seed)
    edges = sorted({0, problem.num_layers, *np.random.default_rng(seed).integers(0, problem.num_layers, 2).tolist()})
    for k in range(problem.num_classes):
        for start, stop in pairwise(edges):
            segment = Segment(k, start, stop)
            layers = slice(start, stop)
            assert problem.segment_cost(segment) == pytest.approx(
                problem.stage_cost[k] + problem.unit_cost[k, layers].sum()
            )
            assert problem.segment_bytes(segment) == problem.stage_bytes[k] + problem.unit_bytes[k, layers].sum()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"counts": (1, 2, 3)}, "counts"),
        ({"boundary_bytes": np.ones(3)}, "boundary_bytes"),
        ({"hop_cost": np.zeros((2, 3))}, "hop_cost"),
        ({"stage_cost": np.array([0.0, -1.0])}, "stage_cost"),
        ({"return_cost": np.array([0.0, math.nan])}, "return_cost"),
        ({"unit_bytes": np.full((2, 4), -1)}, "unit_bytes"),
        ({"source": 2}, "source"),
        ({"source": 1}, "source"),
        ({"counts": (1, 0)}, "source 0 of 2 classes"),
    ],
)
def test_what_does_not_fit_together_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        three_devices(**changes)


def test_gaps_are_relative_to_the_bound() -> None:
    assert Solution((), 12.0, 10.0, "bounded").gap == pytest.approx(0.2)
    assert Solution((), 10.0, 10.0, "exact").gap == 0.0
    assert Solution((), 0.0, 0.0, "exact").gap == 0.0
