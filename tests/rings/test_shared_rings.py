"""Many sessions on one pipeline: their tokens, their times, and that none starves. No sockets, no model, no waiting."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.effects import Job
from agent.wire.codec import FrameKind
from agent.wire.hop import MAX_KEPT_FRAMES
from agent.wire.messages import Sampling, SessionEnded
from planner.pipeline import PipelineTimes, bubbles_rate, no_bubbles_rate, sequential_rate
from planner.types import Pipeline
from tests.fakes.fake_executor import VOCABULARY
from tests.fakes.ring import session
from tests.fakes.timed_ring import TimedRing, even_pace

PIPELINES: tuple[Pipeline, ...] = ("no-bubbles", "bubbles", "sequential")


# --- tokens ---


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), devices=st.integers(1, 4), count=st.integers(1, 4), rows=st.integers(1, 4))
def test_a_sessions_tokens_are_those_it_has_alone(
    pipeline: Pipeline, seed: int, devices: int, count: int, rows: int
) -> None:
    """Sessions of any length come and go at any time on m micro-batches of mu rows; runs and links take any time, and
    so chunks have any length. `expected` knows none of all that."""
    rng = random.Random(seed)
    ring = TimedRing(devices, lambda *_: rng.choice((0.001, 0.01, 0.1)) * rng.random(), rng.choice((0.0, 0.02)))
    ring.open_micro_batches(count, rows, chunk=rng.randint(3, 40), pipeline=pipeline)
    free = [number for number in range(count) for _ in range(rows)]
    waiting = [f"s{number}" for number in range(rng.randint(1, 3 * count * rows))]
    held: dict[str, int] = {}
    cancelled = set()
    while waiting or len(ring.ends) < len(ring.opened):
        for name in [name for name in held if name in ring.ends]:
            free.append(held.pop(name))
        if waiting and free and rng.random() < 0.7:
            name = waiting.pop()
            held[name] = free.pop(rng.randrange(len(free)))
            ring.open_session(
                session(
                    name,
                    [rng.randrange(VOCABULARY) for _ in range(rng.choice((1, 2, 9, 30, 63)))],
                    rng.randint(1, 12),
                    micro_batch=held[name],
                    sampling=Sampling(seed=seed % 1000, temperature=rng.choice((0.0, 20.0)), presence_penalty=3.0),
                    patience_s=rng.choice((0.0, 1.0)),
                )
            )
        if held and rng.random() < 0.05:
            name = rng.choice(sorted(held))
            if name not in ring.ends:
                cancelled.add(name)
                ring.cancel(name)
        ring.play(ring.now + rng.random() * 0.05)
    ring.play()
    for name in ring.opened:
        expected = ring.expected(name)
        if name in cancelled:
            assert ring.tokens[name] == expected[: len(ring.tokens[name])]
        else:
            assert ring.tokens[name] == expected
            assert isinstance(ring.ends[name], SessionEnded)
    for device in ring.names:
        check_order(ring.jobs_of(device))


def check_order(jobs: list[Job]) -> None:
    """Steps of a micro-batch are in order, and never more of them in flight than a receiver allows."""
    last: dict[int, int] = {}
    for job in jobs:
        assert job.step == last.get(job.micro_batch, -1) + 1
        last[job.micro_batch] = job.step
        assert job.step - job.answered <= MAX_KEPT_FRAMES
        if job.kind is FrameKind.PREFILL:
            assert job.shape[1] > 1 or job.rows[0].position == 0, "a single token only where the prompt is one"


# --- times ---


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_rates_are_those_of_the_closed_forms(pipeline: Pipeline, count: int) -> None:
    """Four stages, the second the slowest, links of 1 ms: EdgeShard's equations, without and with bubbles."""
    stage_ms = {"a": 12.0, "b": 20.0, "c": 16.0, "d": 18.0}
    ring = TimedRing(4, lambda device, job: stage_ms[device] / 1e3, 0.001, context=200)
    ring.open_micro_batches(count, 2, pipeline=pipeline)
    for number in range(2 * count):
        ring.open_session(session(f"s{number}", [number + 1] * 3, 150, micro_batch=number % count))
    ring.play(until_s=3.0)
    before = sum(map(len, ring.tokens.values()))
    ring.play(until_s=8.0)
    rate = (sum(map(len, ring.tokens.values())) - before) / 5.0
    times = PipelineTimes(tuple(stage_ms.values()), (0.0,) * 3, (1.0,) * 3, return_ms=1.0)
    expected = {
        "no-bubbles": no_bubbles_rate(times, count, 2),
        "bubbles": bubbles_rate(times, count, 2),
        "sequential": sequential_rate(times, 2),
    }
    assert rate == pytest.approx(expected[pipeline], rel=0.03)


@pytest.mark.parametrize(("count", "rows"), [(1, 8), (2, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_long_prompt_slows_the_others_by_a_round_at_most(count: int, rows: int, devices: int) -> None:
    """Of eight sessions one sends 1,500 tokens: p99 of the others' time per token is at most twice what it is without,
    and its own first token comes after at most three times what it takes alone."""
    without, beside, first_s = times_beside(devices, count, rows, others=7)
    _, _, alone_s = times_beside(devices, count, rows, others=0)
    assert beside <= 2.0 * without
    assert first_s <= 3.0 * alone_s


def test_where_stages_idle_in_turns_prefill_takes_what_nobody_needs() -> None:
    """One micro-batch on four stages: in a chunk's time each of them would wait anyway."""
    without, beside, first_s = times_beside(4, 1, 8, others=7)
    _, _, alone_s = times_beside(4, 1, 8, others=0)
    assert beside <= 1.5 * without
    assert first_s <= 2.2 * alone_s


def times_beside(devices: int, count: int, rows: int, others: int) -> tuple[float, float, float]:
    """99th percentile of the others' time per token before and beside a prompt of 1,500, and the time to its first."""
    ring = TimedRing(devices, even_pace(row_s=0.01, token_s=0.004, call_s=0.01), 0.0005, context=4000)
    ring.open_micro_batches(count, rows)
    names = [f"s{number}" for number in range(others)]
    for number, name in enumerate(names):
        ring.open_session(session(name, [number + 1] * 8, 1000, micro_batch=number % count))
    ring.play(until_s=8.0)
    before = {name: len(ring.tokens[name]) for name in names}
    ring.open_session(session("prompt", [1] * 1500, 1, micro_batch=7 % count))
    while "prompt" not in ring.ends:
        ring.play(until_s=ring.now + 0.1)
    without = [took_s for name in names for took_s in ring.intervals_s(name)[5 : before[name] - 1]]
    beside = [took_s for name in names for took_s in ring.intervals_s(name)[before[name] :]]
    return p99(without), p99(beside), ring.arrivals_s["prompt"][0] - 8.0


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))] if values else 0.0
