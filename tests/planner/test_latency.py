"""The exact planner against every placement there is, and what must not change its answer."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest

from planner.exhaustive import cheapest_by_enumeration
from planner.latency import cheapest_route, overuse
from planner.problem import Ceiling, Problem, Segment, Solution
from tests.fakes.random_problems import cluster_problem, one_per_device, random_ceiling, random_problem

CAMPAIGN = "EDGE_ORACLE" in os.environ
INSTANCES = 2_000 if CAMPAIGN else 300
BATCH = 50


def ceiling_of(seed: int, problem: Problem) -> Ceiling | None:
    return random_ceiling(seed, problem) if seed % 3 == 0 else None


def cost(solution: Solution | None) -> float:
    return math.inf if solution is None else solution.cost


@pytest.mark.parametrize("first", range(0, INSTANCES, BATCH))
def test_it_finds_what_trying_everything_finds(first: int) -> None:
    feasible = 0
    for seed in range(first, first + BATCH):
        problem = random_problem(seed)
        ceiling = ceiling_of(seed, problem)
        expected, found = cheapest_by_enumeration(problem, ceiling), cheapest_route(problem, ceiling)
        assert (found is None) == (expected is None), seed
        if expected is None or found is None:
            continue
        feasible += 1
        assert found.cost == pytest.approx(expected.cost, rel=1e-9), seed
        assert found.segments == expected.segments, seed
        assert found.method == "exact"
        assert found.gap == 0
    assert BATCH // 4 < feasible < BATCH


@pytest.mark.parametrize("seed", range(30))
def test_both_ends_on_the_source(seed: int) -> None:
    problem = random_problem(seed, ends_at_source=True, max_layers=8)
    ceiling = ceiling_of(seed, problem)
    assert cheapest_route(problem, ceiling) == cheapest_by_enumeration(problem, ceiling)


@pytest.mark.parametrize("seed", range(60))
def test_a_ceiling_at_what_the_source_takes_admits_both_its_segments(seed: int) -> None:
    problem = random_problem(seed, ends_at_source=True, max_layers=8)
    problem.stage_cost[:] += 1
    free = cheapest_by_enumeration(problem)
    if free is None:
        return
    own = sum(problem.segment_cost(s) for s in free.segments if s.device_class == problem.source)
    for factor in (1.0, 1 - 1e-6):
        stage_cost = np.full(problem.num_classes, np.inf)
        stage_cost[problem.source] = own * factor
        ceiling = Ceiling(stage_cost, math.inf)
        assert cheapest_route(problem, ceiling) == cheapest_by_enumeration(problem, ceiling)


@pytest.mark.parametrize("seed", range(60))
def test_more_memory_or_faster_links_are_never_worse(seed: int) -> None:
    problem = random_problem(seed, max_layers=12, max_devices=8)
    before = cost(cheapest_route(problem))
    rng = np.random.default_rng(seed)
    roomier = replace(problem, memory_bytes=problem.memory_bytes + rng.integers(0, 9, problem.num_classes))
    faster = replace(problem, hop_cost_per_byte=problem.hop_cost_per_byte * rng.uniform(0.5, 1))
    assert cost(cheapest_route(roomier)) <= before * (1 + 1e-9)
    assert cost(cheapest_route(faster)) <= before * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_the_order_of_classes_changes_no_cost(seed: int) -> None:
    problem = random_problem(seed, max_layers=12, max_devices=8)
    order = np.random.default_rng(seed).permutation(problem.num_classes)
    permuted = replace(
        problem,
        counts=tuple(problem.counts[k] for k in order),
        source=int(np.flatnonzero(order == problem.source)[0]),
        unit_cost=problem.unit_cost[order],
        stage_cost=problem.stage_cost[order],
        hop_cost=problem.hop_cost[np.ix_(order, order)],
        hop_cost_per_byte=problem.hop_cost_per_byte[np.ix_(order, order)],
        return_cost=problem.return_cost[order],
        unit_bytes=problem.unit_bytes[order],
        stage_bytes=problem.stage_bytes[order],
        memory_bytes=problem.memory_bytes[order],
    )
    assert cost(cheapest_route(permuted)) == pytest.approx(cost(cheapest_route(problem)), rel=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_classes_are_a_shorthand_for_devices(seed: int) -> None:
    problem = random_problem(seed, max_layers=12, max_devices=7, all_different=False)
    devices = one_per_device(problem)
    assert cost(cheapest_route(devices)) == pytest.approx(cost(cheapest_route(problem)), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_large_clusters_are_exact(seed: int) -> None:
    for counts in ((1, 11, 2, 1), (1,) * 8, (1, *(28,) * 7)):
        solution = cheapest_route(cluster_problem(seed, counts, link_spread=0.2))
        assert solution is not None
        assert solution.method == "exact"


def test_an_exact_fit_is_a_fit() -> None:
    problem = cluster_problem(0, (1, 2), layers=6)
    need = int(problem.bytes_before[1, -1] - problem.bytes_before[1, 1] + problem.stage_bytes[1])
    fitting = replace(problem, memory_bytes=np.array([1200, need]))
    assert cheapest_route(fitting) == cheapest_by_enumeration(fitting)
    short = cheapest_route(replace(problem, memory_bytes=np.array([1200, need - 1])))
    assert short is not None
    assert len(short.segments) == 3


def test_overuse_counts_what_is_missing() -> None:
    problem = cluster_problem(0, (1, 2, 1), layers=5)
    way = (Segment(0, 0, 1), Segment(1, 1, 2), Segment(2, 2, 3), Segment(1, 3, 4), Segment(1, 4, 5))
    assert overuse(problem, way) == {1: 1}
