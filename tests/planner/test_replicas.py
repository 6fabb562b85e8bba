"""Equal copies behind one source: against trying everything, and against what copies are for."""

from __future__ import annotations

import heapq
import os
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from planner.cost import CostModel
from planner.problem import Problem, Segment
from planner.replicas import copy_problem, fastest_copies, rate_bound
from planner.testbed import load_testbed
from planner.throughput import ProblemAt, fastest_pipeline
from tests.fakes.random_pipelines import placements, random_problem_at

INSTANCES = 1000 if os.environ.get("EDGE_ORACLE") else 150


def oracle(problem_at: ProblemAt, sessions: int, only: int | None) -> float:
    """The highest rate over all copies, rows and micro-batches; every rule written out again."""
    best = 0.0
    for copies in range(1, sessions + 1) if only is None else (only,):
        for rows in range(1, sessions // copies + 1):
            tried = list(placements(problem_at(rows, rows)))
            for m in range(1, sessions // (copies * rows) + 1):
                problem, everyones = problem_at(rows, rows * m), problem_at(rows, copies * rows * m)
                for each in tried:
                    rate = 1e3 * copies * rows / each.period(m, copies)
                    if rate > best and fits(problem, everyones, each.segments, copies):
                        best = rate
    return best


def fits(problem: Problem, everyones: Problem, segments: tuple[Segment, ...], copies: int) -> bool:
    used = Counter(segment.device_class for segment in segments if segment.device_class != problem.source)
    if any(count * copies > problem.counts[k] for k, count in used.items()):
        return False
    own = [segment for segment in segments if segment.device_class == problem.source]
    own_bytes = everyones.stage_bytes[problem.source] + sum(
        int(everyones.unit_bytes[problem.source, each.start : each.stop].sum()) for each in own
    )
    return bool(own_bytes <= everyones.memory_bytes[problem.source]) and all(
        problem.segment_bytes(segment) <= problem.memory_bytes[segment.device_class]
        for segment in segments
        if segment not in own
    )


def test_no_number_of_equal_copies_is_faster():
    draw = random.Random(8)
    differences, replicated = [], 0
    for seed in range(INSTANCES):
        problem_at = random_problem_at(seed, max_layers=6, max_devices=6)
        sessions, only = draw.randint(1, 6), draw.choice([None, None, 2])
        solution = fastest_copies(problem_at, sessions=sessions, copies=only)
        # More copies than devices of any class leave the source alone, which one copy with more micro-batches is too.
        best = oracle(problem_at, sessions, only)
        if solution is None:
            differences += [seed] if best and only is None else []
            continue
        copy = solution.copy
        assert copy.copies * copy.micro_batches * copy.rows <= sessions
        assert solution.bound_tokens_per_s >= copy.rate_tokens_per_s
        if copy.rate_tokens_per_s != pytest.approx(best, rel=1e-9):
            differences.append(seed)
        replicated += copy.copies > 1
    assert differences == []
    assert replicated > INSTANCES / 20


def eleven_behind_a_source(layers: int = 32) -> ProblemAt:
    """A source, eleven devices like it, each large enough for all layers; rows cost a twentieth."""

    def at(rows: int, sessions: int) -> Problem:
        return Problem(
            counts=(1, 11),
            source=0,
            unit_cost=np.full((2, layers), 4.0 * (1 + 0.05 * (rows - 1))),
            stage_cost=np.zeros(2),
            hop_cost=np.full((2, 2), 1.0),
            hop_cost_per_byte=np.full((2, 2), 2.0),
            boundary_bytes=np.full(layers, float(rows)),
            return_cost=np.array([0.0, 1.0]),
            unit_bytes=np.full((2, layers), 100 + sessions, dtype=np.int64),
            stage_bytes=np.zeros(2, dtype=np.int64),
            memory_bytes=np.array([100 + 120, layers * 120]),
        )

    return at


def test_eleven_copies_behind_one_layer_at_the_source():
    problem_at = eleven_behind_a_source()
    chain = fastest_pipeline(problem_at, sessions=11, fixed=(11, 1))
    solution = fastest_copies(problem_at, sessions=11, copies=11)
    assert chain is not None
    assert solution is not None
    assert solution.copy.segments == (Segment(0, 0, 1), Segment(1, 1, 32))
    round_ms = 32 * 4 + 1 + 2 + 1
    assert solution.copy.rate_tokens_per_s == pytest.approx(11 * 1e3 / round_ms)
    # The chain makes eleven hops per token where a copy makes one.
    assert solution.copy.rate_tokens_per_s > chain.rate_tokens_per_s


@pytest.mark.parametrize(("rows", "rate_tokens_per_s"), [(1, 76.94), (4, 251.84), (8, 405.47)])
def test_copies_on_the_papers_testbed(rows, rate_tokens_per_s):
    """7B fits one AGX Orin: eleven copies behind the source's layer 0, where the paper reports 52.45 tokens/s."""
    testbed = load_testbed("edgeshard-paper", "llama2-7b")
    workload = replace(testbed.defaults, sessions=11 * rows)
    model = CostModel(testbed.profile, workload, source=testbed.source)
    solution = fastest_copies(model.pipeline_problem, sessions=11 * rows, copies=11)
    assert solution is not None
    assert (solution.copy.micro_batches, solution.copy.rows) == (1, rows)
    assert [segment.stop for segment in solution.copy.segments] == [1, 32]
    assert solution.copy.rate_tokens_per_s == pytest.approx(rate_tokens_per_s, abs=0.005)


def test_the_source_serves_every_copy():
    """With a source of 20 ms for its layer, eleven copies wait for it: 20 ms each, whatever the copies do."""

    def at(rows: int, sessions: int) -> Problem:
        problem = eleven_behind_a_source()(rows, sessions)
        return replace(problem, unit_cost=problem.unit_cost * np.array([[5.0], [1.0]]))

    solution = fastest_copies(at, sessions=11, copies=11)
    assert solution is not None
    assert solution.copy.rate_tokens_per_s == pytest.approx(1e3 / 20)
    # Eleven rows at a time would cost the source half as much again, for eleven tokens.
    assert solution.bound_tokens_per_s <= 11 * 1e3 / (20 * 1.5) * (1 + 1e-9)


def test_copies_played_event_by_event_reach_the_rate():
    """First come, first served at the source; everything behind it is each copy's own."""
    draw = random.Random(14)
    for _ in range(200):
        copies, m, rounds = draw.randint(1, 5), draw.randint(1, 4), 30
        services = [draw.uniform(0.2, 2), *(draw.uniform(0.1, 6) for _ in range(draw.randint(1, 4)))]
        return_ms = draw.uniform(0, 4)
        free_ms: Counter[tuple[int, int]] = Counter()
        arrivals = [(0.0, number, number % copies, 0, 0) for number in range(copies * m)]
        number, backs_ms = copies * m, [0.0] * rounds
        while arrivals:
            now_ms, _, copy, step, place = heapq.heappop(arrivals)
            server = (copy if place else -1, place)
            now_ms = free_ms[server] = max(now_ms, free_ms[server]) + services[place]
            if place + 1 == len(services):
                now_ms, step, place = now_ms + return_ms, step + 1, -1
                backs_ms[step - 1] = max(backs_ms[step - 1], now_ms)
            if step < rounds:
                heapq.heappush(arrivals, (now_ms, number, copy, step, place + 1))
                number += 1
        played = copies * m * (rounds // 2) / (backs_ms[-1] - backs_ms[rounds - 1 - rounds // 2])
        period = max(copies * services[0], *services[1:], (sum(services) + return_ms) / m)
        assert played == pytest.approx(copies / period, rel=1e-9)


def test_the_source_reserves_for_the_sequences_of_all_copies():
    problem_at = eleven_behind_a_source()
    problem = copy_problem(problem_at, copies=4, rows=2, micro_batches=3)
    assert problem is not None
    assert problem.counts == (1, 2)
    assert problem.unit_bytes[0, 0] == 100 + 24
    assert problem.unit_bytes[1, 0] == 100 + 6
    assert copy_problem(problem_at, copies=12, rows=1, micro_batches=1) is None


def test_the_bound_holds_for_every_single_pipeline():
    for seed in range(60):
        problem_at = random_problem_at(seed, max_layers=6, max_devices=4)
        solution = fastest_pipeline(problem_at, sessions=4)
        if solution is not None:
            assert rate_bound(problem_at, 4) >= solution.rate_tokens_per_s * (1 - 1e-12)


@pytest.mark.parametrize("arguments", [{"sessions": 0}, {"sessions": 2, "copies": 0}])
def test_less_than_one_of_anything_is_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        fastest_copies(eleven_behind_a_source(), **arguments)
