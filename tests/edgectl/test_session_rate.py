"""Rates from arrival times, against pipelines played event by event."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.session_rate import ms_per_token, steady_tokens_per_s
from planner.pipeline import PipelineTimes, no_bubbles_rate


def played(times: PipelineTimes, micro_batches: int, tokens: int) -> list[list[float]]:
    """Arrivals at the source of every micro-batch's tokens, without bubbles: each stage serves who came first."""
    free = [0.0] * len(times.compute_ms)
    arrivals: list[list[float]] = [[] for _ in range(micro_batches)]
    waiting = [(0.0, number, 0) for number in range(micro_batches)]
    while waiting:
        waiting.sort()
        at, number, place = waiting.pop(0)
        free[place] = max(free[place], at) + times.compute_ms[place]
        if place + 1 < len(free):
            waiting.append((free[place], number, place + 1))
            continue
        arrivals[number].append((free[place] + times.return_ms) / 1e3)
        if len(arrivals[number]) < tokens:
            waiting.append((free[place] + times.return_ms, number, 0))
    return arrivals


@given(seed=st.integers(0, 10**6), stages=st.integers(1, 5), micro_batches=st.integers(1, 6))
def test_the_rate_of_a_played_pipeline_is_its_closed_form(seed: int, stages: int, micro_batches: int) -> None:
    chance = random.Random(seed)
    compute = tuple(chance.uniform(5, 30) for _ in range(stages))
    times = PipelineTimes(compute, (0.0,) * (stages - 1), (0.0,) * (stages - 1), chance.uniform(0, 3))
    arrivals = played(times, micro_batches, 40)
    assert steady_tokens_per_s(arrivals, 15) == pytest.approx(no_bubbles_rate(times, micro_batches, 1), rel=1e-3)


def test_filling_and_emptying_do_not_count() -> None:
    slow_start = [0.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.1]
    early_end = [0.5, 5.5, 6.5, 7.5, 7.6]
    assert steady_tokens_per_s([slow_start, early_end], 1) == pytest.approx(2.0)


@pytest.mark.parametrize("sessions", [[], [[1.0, 2.0, 3.0], [1.0, 2.0]], [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]])
def test_too_little_is_no_rate(sessions: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        steady_tokens_per_s(sessions, 1)


def test_time_per_token_is_between_tokens_without_the_last() -> None:
    assert ms_per_token([10.0, 10.1, 10.2, 10.35, 10.36]) == pytest.approx(350 / 3)
    with pytest.raises(ValueError):
        ms_per_token([1.0, 2.0])
