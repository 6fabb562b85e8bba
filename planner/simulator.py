"""A pipeline that feeds itself, played event by event: what the closed forms of `pipeline` claim, and what they cannot.

Every server takes what arrives first. A micro-batch passes stage 0, link 0, stage 1, … and its token's way back, then
begins its next step at once (no bubbles) or when the last micro-batch of the round is back (bubbles). On distinct
servers the rates equal `pipeline`'s to rounding. Where stages share a server, the no-bubbles form is an upper bound
(first come, first served may let a server idle that could have worked) and the bubbles form only an estimate.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from planner.pipeline import PipelineTimes

MAX_INTERVALS = 2_000_000
"""A run keeps every interval, about 100 bytes each."""


class Interval(NamedTuple):
    """A stage or a link at work on one step of one micro-batch: a bar of a Gantt chart."""

    kind: Literal["stage", "link"]
    place: int
    """Stage s, or the link behind stage s."""
    micro_batch: int
    step: int
    arrival_ms: float
    start_ms: float
    stop_ms: float


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What a real cluster adds to the planned times. All off by default."""

    compute_spread: float = 0.0
    """A stage takes its time times uniform(1 - spread, 1 + spread)."""
    jitter_ms: float = 0.0
    """Mean of an exponential delay added to every latency, the return's too."""
    loss: float = 0.0
    """Probability that a transmission is lost. The sender waits, then sends again; frames behind it wait too."""
    retransmission_ms: float = 200.0
    """From the end of a lost transmission to the next: the least retransmission time-out of Linux's TCP."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.compute_spread < 1 and 0 <= self.loss < 1 and self.jitter_ms >= 0):
            raise ValueError(f"spread and loss lie in [0, 1), jitter is not negative: {self}")


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What was seen. Rate, shares and waits leave out the first half of the rounds, in which the pipeline fills."""

    rate_tokens_per_s: float
    stage_busy: tuple[float, ...]
    """[S], time at work for this stage over the time its tokens took: may pass 1 a little while a queue drains."""
    link_busy: tuple[float, ...]
    """[S - 1]"""
    stage_wait_ms: tuple[float, ...]
    """[S], mean time a micro-batch stands before the stage in one step."""
    makespan_ms: float
    """From the start of the first step to the last token's return."""
    intervals: tuple[Interval, ...]
    """In order of arrival."""


def simulate(
    times: PipelineTimes,
    micro_batches: int,
    rounds: int,
    *,
    rows: int = 1,
    bubbles: bool = False,
    disturbance: Disturbance | None = None,
) -> SimulatedRun:
    """Let `micro_batches` micro-batches of `rows` rows make `rounds` tokens each.

    Raises ValueError for fewer than two rounds, no micro-batch, or a run of more than MAX_INTERVALS intervals.
    """
    stages = len(times.compute_ms)
    if micro_batches < 1 or rounds < 2:
        raise ValueError(f"{micro_batches} micro-batches over {rounds} rounds: need at least 1 and 2")
    if micro_batches * rounds * (2 * stages - 1) > MAX_INTERVALS:
        raise ValueError(f"{micro_batches} micro-batches × {rounds} rounds × {stages} stages: take fewer rounds")
    intervals, returns_ms = _play(times, micro_batches, rounds, bubbles, disturbance or Disturbance())
    filled = rounds // 2 - 1
    stop_ms = max(returns_ms[-1])
    span_ms = stop_ms - max(returns_ms[filled])
    tokens = micro_batches * rows * (rounds - 1 - filled)
    stage_busy, waits = [0.0] * stages, [0.0] * stages
    link_busy = [0.0] * (stages - 1)
    for interval in intervals:
        if interval.step <= filled:
            continue
        busy = stage_busy if interval.kind == "stage" else link_busy
        busy[interval.place] += interval.stop_ms - interval.start_ms
        if interval.kind == "stage":
            waits[interval.place] += interval.start_ms - interval.arrival_ms
    passes = micro_batches * (rounds - 1 - filled)
    return SimulatedRun(
        rate_tokens_per_s=1e3 * tokens / span_ms,
        stage_busy=tuple(busy / span_ms for busy in stage_busy),
        link_busy=tuple(busy / span_ms for busy in link_busy),
        stage_wait_ms=tuple(wait / passes for wait in waits),
        makespan_ms=stop_ms,
        intervals=tuple(intervals),
    )


def _play(
    times: PipelineTimes, micro_batches: int, rounds: int, bubbles: bool, disturbance: Disturbance
) -> tuple[list[Interval], Sequence[Sequence[float]]]:
    """Intervals in order of arrival, and [rounds][micro_batches] times at which tokens were back."""
    stages = len(times.compute_ms)
    names = times.servers or tuple(str(place) for place in range(stages))
    draw = random.Random(disturbance.seed)
    free_ms: dict[tuple[str, str | int], float] = {}
    intervals: list[Interval] = []
    returns_ms: list[list[float]] = [[] for _ in range(rounds)]
    # Arrivals in time order; the running number keeps first come, first served among equals.
    arrivals = [(0.0, number, number, 0, 0) for number in range(micro_batches)]
    number = micro_batches
    while arrivals:
        arrival_ms, _, micro_batch, step, place = heapq.heappop(arrivals)
        stage, at_link = divmod(place, 2)
        server = ("link", stage) if at_link else ("stage", names[stage])
        service_ms = (
            _transmission_ms(times.transfer_ms[stage], disturbance, draw)
            if at_link
            else times.compute_ms[stage] * (1 + disturbance.compute_spread * draw.uniform(-1, 1))
        )
        start_ms = max(arrival_ms, free_ms.get(server, 0.0))
        stop_ms = free_ms[server] = start_ms + service_ms
        kind: Literal["stage", "link"] = "link" if at_link else "stage"
        intervals.append(Interval(kind, stage, micro_batch, step, arrival_ms, start_ms, stop_ms))
        starting = [micro_batch]
        if place < 2 * stages - 2:
            next_ms = stop_ms + (times.latency_ms[stage] + _jitter_ms(disturbance, draw) if at_link else 0.0)
            place += 1
        else:
            back_ms = stop_ms + times.return_ms
            if stages > 1:
                back_ms += _jitter_ms(disturbance, draw) + _transmission_ms(0.0, disturbance, draw)
            returns_ms[step].append(back_ms)
            if step + 1 == rounds:
                continue
            if bubbles and len(returns_ms[step]) < micro_batches:
                continue
            next_ms = max(returns_ms[step]) if bubbles else back_ms
            starting = list(range(micro_batches)) if bubbles else starting
            step, place = step + 1, 0
        for started in starting:
            heapq.heappush(arrivals, (next_ms, number, started, step, place))
            number += 1
    return intervals, returns_ms


def _transmission_ms(transfer_ms: float, disturbance: Disturbance, draw: random.Random) -> float:
    """How long a link is taken until the frame is through."""
    total_ms = transfer_ms
    while disturbance.loss and draw.random() < disturbance.loss:
        total_ms += disturbance.retransmission_ms + transfer_ms
    return total_ms


def _jitter_ms(disturbance: Disturbance, draw: random.Random) -> float:
    return draw.expovariate(1 / disturbance.jitter_ms) if disturbance.jitter_ms else 0.0
