"""The frontier of latency and rate: every trade there is, none that another placement improves on."""

from __future__ import annotations

import random

import pytest

from planner.bottleneck import Ring, shortest_period
from planner.pareto import frontier
from planner.problem import Problem
from tests.fakes.random_pipelines import placements, random_problem_at
from tests.fakes.random_problems import cluster_problem


def trades(problem: Problem, micro_batches: int, rows: int) -> list[tuple[float, float]]:
    """(L, rate) of all placements that no other beats, by rising L."""
    tried = [each for each in placements(problem) if problem.allows(each.segments)]
    both = sorted((each.round_ms, -1e3 * rows / each.period(micro_batches)) for each in tried)
    kept: list[tuple[float, float]] = []
    for round_ms, negative_rate in both:
        if not kept or -negative_rate > kept[-1][1] * (1 + 1e-9):
            kept.append((round_ms, -negative_rate))
    return kept


def test_the_frontier_is_all_trades_and_only_trades():
    draw = random.Random(3)
    long = 0
    for seed in range(300):
        rows, micro_batches = draw.randint(1, 3), draw.randint(1, 6)
        problem = random_problem_at(seed, max_layers=7, max_devices=5)(rows, rows * micro_batches)
        points = frontier(Ring(problem, micro_batches), rows)
        expected = trades(problem, micro_batches, rows)
        assert [(point.round_ms, point.rate_tokens_per_s) for point in points] == [
            (pytest.approx(round_ms), pytest.approx(rate)) for round_ms, rate in expected
        ]
        long += len(points) > 2
    assert long > 10


def test_few_points_keep_both_ends():
    problem = cluster_problem(2, (1, 1, 1, 1), layers=10, capacity=3.0)
    ring = Ring(problem, 8)
    whole, short = frontier(ring, 1), frontier(ring, 1, points=3)
    assert len(whole) > 3
    assert len(short) <= 3
    assert short[0] == whole[0]
    assert short[-1].rate_tokens_per_s == pytest.approx(whole[-1].rate_tokens_per_s)
    assert 1e3 / whole[-1].rate_tokens_per_s == pytest.approx(shortest_period(ring).period)
    assert set(short) <= set(whole)


def test_one_point_is_no_frontier():
    with pytest.raises(ValueError, match="two ends"):
        frontier(Ring(cluster_problem(1, (1, 1), layers=4), 2), 1, points=1)
