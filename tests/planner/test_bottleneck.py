"""The shortest period for given micro-batches: against trying everything, and what each look proves."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from planner.bottleneck import Ring, shortest_period
from planner.exhaustive import cheapest_by_enumeration
from planner.latency import cheapest_route
from planner.problem import Ceiling, Problem, Solution
from tests.fakes.random_pipelines import Tried, best_period, placements, random_problem_at
from tests.fakes.random_problems import cluster_problem


def random_ring(seed: int, draw: random.Random, *, max_layers: int = 7, copies: int | None = None) -> Ring:
    problem = random_problem_at(seed, max_layers=max_layers)(draw.randint(1, 3), draw.randint(1, 3))
    return Ring(problem, draw.randint(1, 7), copies or draw.choice([1, 1, 2, 3]))


def test_the_period_is_the_shortest_and_every_bound_is_below_it():
    draw = random.Random(1)
    for seed in range(200):
        ring = random_ring(seed, draw)
        shortest = best_period(ring.problem, ring.micro_batches, ring.copies)
        found = shortest_period(ring)
        assert found.period == pytest.approx(shortest, rel=1e-9)
        assert found.lower_bound == found.period
        assert ring.period_bound() <= shortest * (1 + 1e-12)
        if found.segments is None:
            assert math.isinf(shortest)
        else:
            assert ring.period(found.segments) == found.period


def test_nothing_below_is_said_when_nothing_is():
    draw = random.Random(2)
    seen = set()
    for seed in range(200):
        ring = random_ring(seed, draw)
        shortest = best_period(ring.problem, ring.micro_batches, ring.copies)
        for factor in (0.5, 0.9, 1.1, 3.0):
            below = factor * shortest if math.isfinite(shortest) else 100.0
            found = shortest_period(ring, below=below)
            seen.add(found.segments is None)
            if math.isfinite(shortest) and factor > 1:
                assert found.period == pytest.approx(shortest, rel=1e-9)
            else:
                assert found.segments is None
                assert found.lower_bound >= below * (1 - 1e-9)
    assert seen == {False, True}


def test_what_the_search_leaves_open_stays_in_the_gap():
    """A search that stops early, here one that answers with any placement and half its cost as the bound."""

    def first_found(problem: Problem, ceiling: Ceiling | None) -> Solution | None:
        best = cheapest_by_enumeration(problem, ceiling)
        if best is None:
            return None
        worse = next(each.segments for each in placements(problem) if within(problem, ceiling, each))
        return Solution(worse, problem.cost_of(worse), best.cost / 2, "bounded")

    def within(problem: Problem, ceiling: Ceiling | None, tried: Tried) -> bool:
        if not problem.allows(tried.segments):
            return False
        return ceiling is None or max(tried.own_ms, tried.others_ms) <= ceiling.transfer_cost

    draw = random.Random(12)
    open_gaps = 0
    for seed in range(60):
        ring = random_ring(seed, draw, max_layers=5, copies=1)
        shortest = best_period(ring.problem, ring.micro_batches)
        found = shortest_period(replace(ring, search=first_found))
        if found.segments is None:
            assert math.isinf(shortest)
            continue
        assert found.lower_bound * (1 - 1e-9) <= shortest <= found.period * (1 + 1e-9)
        assert ring.period(found.segments) == found.period
        open_gaps += found.lower_bound < found.period
    assert open_gaps > 10


def test_service_times_hold_every_bottleneck():
    draw = random.Random(4)
    for seed in range(100):
        ring = random_ring(seed, draw)
        services = ring.service_times()
        assert (np.diff(services) > 0).all()
        for tried in placements(ring.problem):
            if ring.problem.allows(tried.segments):
                bottleneck = ring.bottleneck(tried.segments)
                assert bottleneck == pytest.approx(max(tried.others_ms, ring.copies * tried.own_ms))
                assert np.isclose(services, bottleneck, rtol=1e-10, atol=0).any()


def test_equal_layers_have_few_service_times():
    """Bisection looks at a number of layers and a class, not at a range of layers."""
    ring = Ring(cluster_problem(3, (1, 11, 2, 1)), 8)
    assert len(ring.service_times()) <= 2 * 80 * 4 + 4


def test_bisection_asks_for_few_latency_searches():
    """Forty layers of their own on four devices have over two thousand service times."""
    asked = []

    def counting(problem: Problem, ceiling: Ceiling | None) -> Solution | None:
        asked.append(ceiling)
        return cheapest_route(problem, ceiling)

    rng = np.random.default_rng(7)
    problem = cluster_problem(7, (1, 1, 1, 1), layers=40, capacity=3.0)
    problem = replace(problem, unit_cost=problem.unit_cost * rng.uniform(0.2, 5, problem.unit_cost.shape))
    for micro_batches in range(1, 40):
        asked.clear()
        ring = Ring(problem, micro_batches, search=counting)
        found, services = shortest_period(ring), ring.service_times()
        assert found.lower_bound == found.period
        assert len(services) > 2000
        assert len(asked) <= 2 + np.log2(len(services))


def test_a_placement_within_a_service_time_keeps_to_it():
    draw = random.Random(6)
    for seed in range(60):
        ring = random_ring(seed, draw)
        services = ring.service_times()
        for service in services[:: max(1, len(services) // 5)]:
            found = ring.cheapest_within(float(service))
            if found is not None:
                assert ring.bottleneck(found.segments) <= service * (1 + 1e-10)
