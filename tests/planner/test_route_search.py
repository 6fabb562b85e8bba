"""The programme under the planners: values from first principles, bounds when counts are left out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from planner.exhaustive import cheapest_by_enumeration
from planner.problem import Problem, Segment
from planner.route_search import Counting, Space, ways_on
from tests.fakes.random_problems import random_ceiling, random_problem


def problem_of(seed: int) -> Problem:
    return random_problem(seed, max_layers=7, max_devices=5, ends_at_source=False)


@pytest.mark.parametrize("seed", range(40))
def test_more_classes_tracked_raise_the_bound_up_to_the_optimum(seed: int) -> None:
    problem = problem_of(seed)
    space = Space(problem, random_ceiling(seed, problem) if seed % 2 else None)
    values = [ways_on(space, space.middle[:tracked]).value for tracked in range(len(space.middle) + 1)]
    assert values == sorted(values)
    best = cheapest_by_enumeration(problem, space.ceiling)
    assert values[-1] == pytest.approx(math.inf if best is None else best.cost, rel=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_a_way_costs_what_the_table_says(seed: int) -> None:
    problem = problem_of(seed)
    space = Space(problem)
    prices = np.random.default_rng(seed).uniform(0, 5, problem.num_classes)
    prices[problem.source] = 0
    ways = ways_on(space, space.middle[::2], prices)
    if math.isinf(ways.value):
        return
    way = ways.cheapest()
    cost = sum(problem.segment_cost(segment) + prices[segment.device_class] for segment in way)
    cost += sum(space.hops[b.start, a.device_class, b.device_class] for a, b in pairwise(way))
    cost += problem.return_cost[way[-1].device_class]
    assert ways.value == pytest.approx(cost, rel=1e-9)
    assert [a.stop for a in way[:-1]] == [b.start for b in way[1:]]
    assert way[0].device_class == problem.source
    assert all(problem.source != segment.device_class for segment in way[1:])


def test_segments_reach_as_far_as_memory_and_ceiling_let_them() -> None:
    for seed in range(20):
        problem = problem_of(seed)
        ceiling = random_ceiling(seed, problem)
        space = Space(problem, ceiling)
        for k in range(problem.num_classes):
            for start in range(problem.num_layers):
                segments = [Segment(k, start, stop) for stop in range(start + 1, problem.num_layers + 1)]
                fitting = [
                    segment.stop
                    for segment in segments
                    if problem.segment_bytes(segment) <= problem.memory_bytes[k]
                    and problem.segment_cost(segment) <= ceiling.stage_cost[k] * (1 + 1e-12)
                ]
                assert space.reach[k, start] == max(fitting, default=start)


def test_no_link_no_hop_however_few_bytes() -> None:
    problem = problem_of(5)
    problem.hop_cost_per_byte[:] = math.inf
    problem.boundary_bytes[:] = 0
    assert np.isinf(Space(problem).hops).all()


def test_counts_in_mixed_radix() -> None:
    counting = Counting((1, 3), (1, 4, 9, 2))
    assert counting.vectors == 5 * 3
    assert counting.strides == {1: 1, 3: 5}
