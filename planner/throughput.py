"""The placement, micro-batches and rows of the highest rate: exact.

EdgeShard (arXiv 2405.14371) takes the batch as given; here it is part of the search. More micro-batches shorten L / m
and need more memory, more rows share a weight read and lengthen every service. `bottleneck` solves one pair.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from planner.bottleneck import Ring, shortest_period
from planner.problem import Problem, Segment

ProblemAt: TypeAlias = Callable[[int, int], Problem]
"""(rows, sessions) → the additive problem of one step of a micro-batch of `rows` rows, in milliseconds, on devices that
reserve memory for `sessions` sequences. Costs may depend on rows alone; bytes must not fall with sessions."""

PROVEN = 1e-9
"""Relative gap up to which a bound is the value: rounding, not search."""


@dataclass(frozen=True, slots=True)
class PipelineSolution:
    """What circulates where, how fast, and what no choice exceeds."""

    segments: tuple[Segment, ...]
    """Of one copy."""
    micro_batches: int
    """Of one copy."""
    rows: int
    rate_tokens_per_s: float
    """Of all copies, by the form without bubbles."""
    upper_bound_tokens_per_s: float
    method: Literal["exact", "bounded"]
    copies: int = 1

    @property
    def gap(self) -> float:
        """Relative distance to the upper bound; 0 for a proven optimum."""
        return max(0.0, self.upper_bound_tokens_per_s / self.rate_tokens_per_s - 1)


@dataclass(frozen=True, slots=True)
class Box:
    """Choices that are bounded together: some copies, some rows, and from `low` to `high` micro-batches of a copy."""

    copies: int
    rows: int
    low: int
    high: int


def fastest_pipeline(
    problem_at: ProblemAt, *, sessions: int, fixed: tuple[int, int] | None = None
) -> PipelineSolution | None:
    """The highest rate over placements and pairs m · mu <= sessions, or for the pair `fixed` = (m, mu).

    None when nothing fits. Raises ValueError for a pair or sessions below 1.
    """
    if sessions < 1 or (fixed is not None and min(fixed) < 1):
        raise ValueError(f"sessions {sessions} and (micro-batches, rows) {fixed} must be at least 1")
    if fixed is not None:
        boxes = [Box(1, fixed[1], fixed[0], fixed[0])]
    else:
        boxes = [Box(1, rows, 1, sessions // rows) for rows in range(1, sessions + 1)]

    @cache
    def ring_at(copies: int, rows: int, reserved: int, circulating: int) -> Ring:
        return Ring(problem_at(rows, rows * reserved), circulating, copies)

    return best_of(boxes, ring_at)


RingAt: TypeAlias = Callable[[int, int, int, int], "Ring | None"]
"""(copies, rows, micro-batches that have memory, micro-batches that circulate); None where a copy has no devices."""


def best_of(boxes: list[Box], ring_at: RingAt) -> PipelineSolution | None:
    """The highest rate in any of the boxes, best bound first.

    A box is relaxed to the memory of its fewest and the ring of its most micro-batches. Where that placement has
    memory for the most, the box is solved; else it is split at the most it has memory for.
    """
    best: PipelineSolution | None = None
    # Relaxed boxes by falling bound; the box itself makes the order total.
    waiting = [(-bound, *_key(box)) for box in boxes if (bound := _rate_bound(ring_at, box)) > 0]
    heapq.heapify(waiting)
    open_bound = 0.0
    while waiting:
        negative_bound, *key = heapq.heappop(waiting)
        box, incumbent = Box(*key), best.rate_tokens_per_s if best else 0.0
        if -negative_bound <= incumbent * (1 + PROVEN):
            break
        ring = ring_at(box.copies, box.rows, box.low, box.high)
        assert ring is not None, f"{box} has a bound and no ring"
        tokens = 1e3 * box.copies * box.rows
        found = shortest_period(ring, below=tokens / incumbent if incumbent else math.inf)
        bound = tokens / found.lower_bound
        if found.segments is None:
            open_bound = max(open_bound, bound)
            continue
        held = _most_held(ring_at, box, found.segments)
        actual = ring_at(box.copies, box.rows, held, held)
        assert actual is not None, f"{box} was solved without a ring"
        rate = tokens / actual.period(found.segments)
        if rate > incumbent:
            best = PipelineSolution(found.segments, held, box.rows, rate, rate, "exact", box.copies)
        if held == box.high:
            open_bound = max(open_bound, bound)
            continue
        for low, high in ((box.low, held), (held + 1, box.high)):
            part = Box(box.copies, box.rows, low, high)
            heapq.heappush(waiting, (-min(bound, _rate_bound(ring_at, part)), *_key(part)))
    if best is None:
        return None
    upper = max(open_bound, best.rate_tokens_per_s)
    if upper <= best.rate_tokens_per_s * (1 + PROVEN):
        return best
    return PipelineSolution(
        best.segments, best.micro_batches, best.rows, best.rate_tokens_per_s, upper, "bounded", best.copies
    )


def _key(box: Box) -> tuple[int, int, int, int]:
    return box.copies, box.rows, box.low, box.high


def _rate_bound(ring_at: RingAt, box: Box) -> float:
    """Tokens per second that nothing in the box exceeds, without a search."""
    ring = ring_at(box.copies, box.rows, box.low, box.high)
    if ring is None:
        return 0.0
    period = ring.period_bound()
    return 1e3 * box.copies * box.rows / period if period > 0 else math.inf


def _most_held(ring_at: RingAt, box: Box, segments: tuple[Segment, ...]) -> int:
    """The most micro-batches of the box that the placement has memory for; it has for the fewest."""
    low, high = box.low, box.high
    while low < high:
        middle = (low + high + 1) // 2
        ring = ring_at(box.copies, box.rows, middle, middle)
        if ring is not None and ring.problem.allows(segments):
            low = middle
        else:
            high = middle - 1
    return low
