"""The highest rate: against trying everything, and the mistakes of EdgeShard's Algorithm 2 it must not make."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest

from planner.bottleneck import Ring
from planner.cost import CostModel
from planner.pipeline import PipelineTimes, no_bubbles_rate
from planner.problem import Problem, Segment
from planner.testbed import load_testbed
from planner.throughput import ProblemAt, fastest_pipeline
from tests.fakes.random_pipelines import best_rate, random_problem_at

INSTANCES = 2000 if os.environ.get("EDGE_ORACLE") else 300


def uniform(
    speeds: list[float], layers: int, *, capacity: list[int], hop_ms: float = 0.0, link_ms: float = 0.0
) -> Problem:
    """Devices all different, the first the source; equal layers, links and bytes. A layer is one byte."""
    devices = len(speeds)
    return Problem(
        counts=(1,) * devices,
        source=0,
        unit_cost=np.outer(speeds, np.ones(layers)),
        stage_cost=np.zeros(devices),
        hop_cost=np.full((devices, devices), hop_ms),
        hop_cost_per_byte=np.full((devices, devices), link_ms),
        boundary_bytes=np.ones(layers),
        return_cost=np.where(np.arange(devices) == 0, 0.0, hop_ms),
        unit_bytes=np.ones((devices, layers), dtype=np.int64),
        stage_bytes=np.zeros(devices, dtype=np.int64),
        memory_bytes=np.array(capacity, dtype=np.int64),
    )


def with_rows(problem: Problem, *, sequence_bytes: int = 0) -> ProblemAt:
    """A row more costs a link one row, a stage a tenth; a sequence takes memory on every device."""

    def at(rows: int, sessions: int) -> Problem:
        return replace(
            problem,
            unit_cost=problem.unit_cost * (1 + 0.1 * (rows - 1)),
            boundary_bytes=problem.boundary_bytes * rows,
            stage_bytes=problem.stage_bytes + sequence_bytes * sessions,
        )

    return at


def test_no_choice_is_faster():
    draw = random.Random(5)
    differences, infeasible = [], 0
    for seed in range(INSTANCES):
        problem_at = random_problem_at(seed, max_layers=8, max_devices=draw.choice([3, 4, 4, 5]))
        sessions = draw.randint(1, 5)
        fixed = None if draw.random() < 0.6 else (draw.randint(1, 5), draw.randint(1, 3))
        oracle = best_rate(problem_at, sessions, fixed)
        solution = fastest_pipeline(problem_at, sessions=sessions, fixed=fixed)
        if solution is None:
            infeasible += 1
            differences += [seed] if oracle else []
            continue
        m, rows = solution.micro_batches, solution.rows
        assert (m, rows) == fixed if fixed else m * rows <= sessions
        assert problem_at(rows, m * rows).allows(solution.segments)
        assert (solution.method, solution.gap) == ("exact", 0)
        if solution.rate_tokens_per_s != pytest.approx(oracle, rel=1e-9):
            differences.append(seed)
    assert differences == []
    assert 0 < infeasible < INSTANCES / 4


def test_the_rate_is_what_the_closed_form_says_of_the_plan():
    checked = 0
    for seed in range(60):
        problem_at = random_problem_at(seed)
        solution = fastest_pipeline(problem_at, sessions=4)
        if solution is None or problem_at(1, 1).ends_at_source:
            continue
        problem = problem_at(solution.rows, solution.rows * solution.micro_batches)
        hops = list(zip(solution.segments, solution.segments[1:], strict=False))
        times = PipelineTimes(
            compute_ms=tuple(problem.segment_cost(segment) for segment in solution.segments),
            transfer_ms=tuple(problem.transfer_cost(a.device_class, b.device_class, b.start) for a, b in hops),
            latency_ms=tuple(float(problem.hop_cost[a.device_class, b.device_class]) for a, b in hops),
            return_ms=float(problem.return_cost[solution.segments[-1].device_class]),
        )
        rate = no_bubbles_rate(times, solution.micro_batches, solution.rows)
        assert solution.rate_tokens_per_s == pytest.approx(rate, rel=1e-12)
        checked += 1
    assert checked > 30


def test_the_source_may_hold_more_than_layer_0():
    """E4: Algorithm 2 starts from layer 0 alone on the source and never gives it another."""
    problem = uniform([1.0, 1.0], 8, capacity=[8, 8])
    solution = fastest_pipeline(with_rows(problem), sessions=2, fixed=(2, 1))
    assert solution is not None
    assert solution.segments == (Segment(0, 0, 4), Segment(1, 4, 8))
    assert solution.rate_tokens_per_s == pytest.approx(1e3 / 4)


def test_the_source_may_hold_everything():
    problem = uniform([1.0, 9.0], 4, capacity=[4, 4], hop_ms=5.0)
    solution = fastest_pipeline(with_rows(problem), sessions=1)
    assert solution is not None
    assert solution.segments == (Segment(0, 0, 4),)


def test_a_bottleneck_that_must_rise_does():
    """E5: Algorithm 2, line 15, updates only if the new stage is no slower than the bottleneck before it.

    The source holds one layer of 1 ms; whoever follows is slower. The literal test would allow no plan.
    """
    problem = uniform([1.0, 2.0, 3.0], 6, capacity=[1, 6, 6])
    solution = fastest_pipeline(with_rows(problem), sessions=8, fixed=(8, 1))
    assert solution is not None
    assert solution.rate_tokens_per_s == pytest.approx(1e3 / 6)
    assert [len(range(each.start, each.stop)) for each in solution.segments] == [1, 3, 2]


def test_with_few_micro_batches_the_ring_counts_and_stages_are_left_out():
    """E9: the least bottleneck takes all four devices, but two micro-batches cannot fill them and hops cost."""
    problem = uniform([1.0, 1.0, 1.0, 1.0], 8, capacity=[8] * 4, hop_ms=4.0)
    few = fastest_pipeline(with_rows(problem), sessions=2, fixed=(2, 1))
    many = fastest_pipeline(with_rows(problem), sessions=12, fixed=(12, 1))
    assert few is not None
    assert many is not None
    assert (len(few.segments), few.rate_tokens_per_s) == (1, pytest.approx(1e3 / 8))
    assert (len(many.segments), many.rate_tokens_per_s) == (4, pytest.approx(1e3 / 2))
    four_stages_ms = 8 + 3 * 4 + 4
    assert 1e3 / (four_stages_ms / 2) < few.rate_tokens_per_s


@pytest.mark.parametrize(
    ("micro_batches", "slower", "rate_tokens_per_s"), [(2, 2.064, 24.56), (4, 1.588, 37.78), (8, 1.246, 59.32)]
)
def test_on_the_papers_testbed_the_least_bottleneck_is_slower(micro_batches, slower, rate_tokens_per_s):
    """E9 in numbers: equation 10's optimum, the shortest ring of its ties, against ours for 7B with one row each."""
    testbed = load_testbed("edgeshard-paper", "llama2-7b")
    model = CostModel(testbed.profile, testbed.defaults, source=testbed.source)
    ours = fastest_pipeline(model.pipeline_problem, sessions=8, fixed=(micro_batches, 1))
    ring = Ring(model.pipeline_problem(1, 8), micro_batches)
    within = (ring.cheapest_within(service) for service in ring.service_times().tolist())
    least_bottleneck = next(found for found in within if found is not None)
    assert ours is not None
    assert ours.rate_tokens_per_s == pytest.approx(rate_tokens_per_s, abs=0.005)
    assert ring.period(least_bottleneck.segments) * ours.rate_tokens_per_s / 1e3 == pytest.approx(slower, abs=5e-4)


def test_batch_and_micro_batches_are_chosen_within_memory():
    """Four sequences of 2 bytes leave each device 2 bytes, two layers: as many rows as still fill two stages."""
    problem = uniform([1.0, 1.0], 4, capacity=[10, 10])
    solution = fastest_pipeline(with_rows(problem, sequence_bytes=2), sessions=100)
    assert solution is not None
    assert (solution.micro_batches, solution.rows) == (2, 2)
    assert solution.rate_tokens_per_s == pytest.approx(2 * 1e3 / 2.2)


def test_more_is_never_worse():
    for seed in range(40):
        problem_at = random_problem_at(seed, max_layers=6, max_devices=4)
        base = fastest_pipeline(problem_at, sessions=3)
        rate = base.rate_tokens_per_s if base else 0.0

        def roomier(rows: int, sessions: int, problem_at: ProblemAt = problem_at) -> Problem:
            problem = problem_at(rows, sessions)
            return replace(problem, memory_bytes=problem.memory_bytes + 2)

        def quicker(rows: int, sessions: int, problem_at: ProblemAt = problem_at) -> Problem:
            problem = problem_at(rows, sessions)
            return replace(problem, hop_cost_per_byte=problem.hop_cost_per_byte / 2, hop_cost=problem.hop_cost / 2)

        for better, sessions in ((roomier, 3), (quicker, 3), (problem_at, 4)):
            solution = fastest_pipeline(better, sessions=sessions)
            assert (solution.rate_tokens_per_s if solution else 0.0) >= rate * (1 - 1e-12)


@pytest.mark.parametrize(
    "arguments", [{"sessions": 0}, {"sessions": 1, "fixed": (0, 1)}, {"sessions": 1, "fixed": (1, 0)}]
)
def test_less_than_one_of_anything_is_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        fastest_pipeline(with_rows(uniform([1.0], 2, capacity=[2])), **arguments)
