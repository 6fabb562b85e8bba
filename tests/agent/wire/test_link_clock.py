"""The times of an emulated link against a bucket that is filled drop by drop, and what no arrival may break."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.wire.addresses import LinkShape
from agent.wire.link_clock import MAX_DELAY_MS, LinkClock

SENDINGS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=30)
"""(pause before it in ticks, bytes) of each frame."""


def no_noise() -> float:
    raise AssertionError("a link without jitter draws nothing")


def clock(*, seed: int = 0, **shape: float) -> LinkClock:
    draws = random.Random(seed)
    link = LinkShape("peer", **shape)  # type: ignore[arg-type]
    return LinkClock(link, (lambda: draws.gauss(0.0, 1.0)) if link.jitter_ms else no_noise)


def leaving_ticks(frames: list[tuple[int, int]], depth: int) -> list[int]:
    """The oracle: one token per tick into a bucket, one byte of the first frame in line for each token, at once."""
    asked, ticks = [], 0
    for pause, _ in frames:
        ticks += pause
        asked.append(ticks)
    tokens, now, left = depth, 0, []
    for (_, size), at in zip(frames, asked, strict=True):
        todo = size
        while True:
            if now >= at:
                spent = min(todo, tokens)
                todo, tokens = todo - spent, tokens - spent
                if todo == 0:
                    break
            now, tokens = now + 1, min(depth, tokens + 1)
        left.append(now)
    return left


@settings(max_examples=300, deadline=None)
@given(SENDINGS, st.integers(1, 80))
def test_frames_leave_when_the_bucket_lets_them(frames: list[tuple[int, int]], depth: int) -> None:
    link = clock(bytes_per_s=1000.0, burst_bytes=depth)
    now, left = 0, []
    for pause, size in frames:
        now += pause
        left.append(link.send(now / 1e3, size))
    assert left == pytest.approx([tick / 1e3 for tick in leaving_ticks(frames, depth)], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(SENDINGS)
def test_without_a_bucket_frames_take_size_over_rate_one_after_the_other(frames: list[tuple[int, int]]) -> None:
    link = clock(bytes_per_s=1000.0)
    now, free = 0, 0
    for pause, size in frames:
        now += pause
        free = max(free, now) + size
        assert link.send(now / 1e3, size) == pytest.approx(free / 1e3, abs=1e-9)
        assert link.free_s == pytest.approx(free / 1e3, abs=1e-9)


def test_a_backlog_leaves_at_the_rate_in_the_long_run() -> None:
    link = clock(bytes_per_s=1.25e6, burst_bytes=1500)
    sizes = [random.Random(1).randrange(1, 20_000) for _ in range(100_000)]
    arrived = [link.send(1e6, size) for size in sizes]  # a machine that is up for days
    assert (sum(sizes) - 1500) / (arrived[-1] - 1e6) == pytest.approx(1.25e6, rel=1e-6)


def test_after_a_pause_no_more_than_the_burst_leaves_at_once() -> None:
    link = clock(bytes_per_s=1000.0, burst_bytes=500)
    assert [link.send(0.0, 250) for _ in range(3)] == [0.0, 0.0, 0.25]
    assert [link.send(100.0, 250) for _ in range(3)] == [100.0, 100.0, 100.25]


def test_no_rate_is_no_wait_and_latency_comes_after_the_bucket() -> None:
    assert clock().send(5.0, 1 << 40) == 5.0
    link = clock(bytes_per_s=1000.0, latency_ms=30.0)
    assert link.send(1.0, 100) == pytest.approx(1.13)
    assert link.free_s == pytest.approx(1.1), "the next frame's bytes need not wait for the latency"


def test_jitter_keeps_the_order_and_comes_from_the_seed() -> None:
    def arrivals(seed: int) -> list[float]:
        link = clock(latency_ms=50.0, jitter_ms=20.0, seed=seed)
        return [link.send(number / 1e3, 10) for number in range(1000)]

    assert arrivals(3) == arrivals(3) != arrivals(4)
    assert all(before <= after for before, after in pairwise(arrivals(3)))


def test_jitter_is_the_standard_deviation_of_the_latency() -> None:
    link = clock(latency_ms=50.0, jitter_ms=5.0)
    delays_ms = [1e3 * (link.send(float(number), 10) - number) for number in range(20_000)]
    mean = math.fsum(delays_ms) / len(delays_ms)
    deviation = math.sqrt(math.fsum((delay - mean) ** 2 for delay in delays_ms) / len(delays_ms))
    assert (mean, deviation) == (pytest.approx(50.0, rel=0.01), pytest.approx(5.0, rel=0.02))


def test_no_frame_arrives_before_it_has_left() -> None:
    link = clock(bytes_per_s=1e4, latency_ms=1.0, jitter_ms=50.0)
    for number in range(1000):
        arrived = link.send(number / 10, 100)
        assert arrived >= link.free_s >= number / 10


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e300])
@pytest.mark.parametrize("field", ["bytes_per_s", "latency_ms", "jitter_ms"])
def test_a_shape_that_is_none_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"emulated link to peer: {field} is {value},")):
        clock(**{field: value})
    with pytest.raises(ConfigError, match="burst_bytes"):
        clock(burst_bytes=-1)
    assert clock(latency_ms=MAX_DELAY_MS).send(0.0, 1) == 60.0
