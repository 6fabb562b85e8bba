"""What /metrics shows of splits that move: totals since the coordinator started, and each micro-batch as it is now."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

Outcome = Literal["moved", "kept", "unanswered", "broken"]
"""Of a move that was asked for: carried out, refused by the source, not answered in time, or its micro-batch broke."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

DECISION_BUCKETS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
"""Around the millisecond that a decision may take."""


@dataclass(slots=True)
class DecisionTimes:
    """A histogram of how long decisions took."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(DECISION_BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(DECISION_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean_s(self) -> float | None:
        return self.sum_s / self.count if self.count else None


@dataclass(frozen=True, slots=True)
class SplitOfBatch:
    """One micro-batch whose split can move."""

    route: int
    micro_batch: int
    """Its place in the plan, from 0: it keeps it when it opens again under another number."""
    split: int
    proposal: int | None
    """None before the first decision."""


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Where splits are and what was decided."""

    batches: tuple[SplitOfBatch, ...]
    moves: Counter[Outcome]
    held: Counter[str]
    """Decisions that moved nothing, by the guard rail that held them."""
    decisions: DecisionTimes
    moved_bytes: int = 0
