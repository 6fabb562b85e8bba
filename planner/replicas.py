"""Equal copies of a pipeline behind one source, which EdgeShard (arXiv 2405.14371) leaves out: often times faster.

The copies share the source and its first segment, so the prompt stays where it is; the source's server takes one
micro-batch of every copy per period and holds everyone's KV cache. All else each copy has for itself: one device of a
class for every copy, links of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from planner.bottleneck import Ring
from planner.problem import Problem
from planner.subproblem import limited
from planner.throughput import Box, PipelineSolution, ProblemAt, best_of


@dataclass(frozen=True, slots=True)
class ReplicatedSolution:
    """The best of equal copies, and what no arrangement of copies, equal or not, exceeds."""

    copy: PipelineSolution
    """Its `copies`, rate and upper bound are those of all copies together, proven among equal copies."""
    bound_tokens_per_s: float

    @property
    def gap(self) -> float:
        """Relative distance to the bound for copies that differ."""
        return max(0.0, self.bound_tokens_per_s / self.copy.rate_tokens_per_s - 1)


def fastest_copies(problem_at: ProblemAt, *, sessions: int, copies: int | None = None) -> ReplicatedSolution | None:
    """The highest rate over R · m · mu <= sessions: copies, micro-batches, rows and placement; or for R = `copies`.

    None when nothing fits. Raises ValueError for sessions or copies below 1.
    """
    if sessions < 1 or (copies is not None and copies < 1):
        raise ValueError(f"sessions {sessions} and copies {copies} must be at least 1")

    @cache
    def ring_at(copies: int, rows: int, reserved: int, circulating: int) -> Ring | None:
        problem = copy_problem(problem_at, copies, rows, reserved)
        return None if problem is None else Ring(problem, circulating, copies)

    whole = problem_at(1, 1)
    counts = [count for k, count in enumerate(whole.counts) if k != whole.source]
    wanted = range(1, max(counts, default=1) + 1) if copies is None else (copies,)
    boxes = [
        Box(each, rows, 1, sessions // (each * rows)) for each in wanted for rows in range(1, sessions // each + 1)
    ]
    copy = best_of(boxes, ring_at)
    if copy is None:
        return None
    return ReplicatedSolution(copy, max(copy.rate_tokens_per_s, rate_bound(problem_at, sessions)))


def copy_problem(problem_at: ProblemAt, copies: int, rows: int, micro_batches: int) -> Problem | None:
    """One copy's problem: every copies-th device of a class, and a source with memory for the sequences of all.

    None for more than one copy when no class has a device for each.
    """
    problem = problem_at(rows, rows * micro_batches)
    if copies == 1:
        return problem
    source, everyones = problem.source, problem_at(rows, copies * rows * micro_batches)
    at_most = [1 if k == source else count // copies for k, count in enumerate(problem.counts)]
    if sum(at_most) == 1:
        return None
    own = np.arange(problem.num_classes) == source
    shared = replace(
        problem,
        unit_bytes=np.where(own[:, None], everyones.unit_bytes, problem.unit_bytes),
        stage_bytes=np.where(own, everyones.stage_bytes, problem.stage_bytes),
        memory_bytes=np.where(own, everyones.memory_bytes, problem.memory_bytes),
    )
    return limited(shared, at_most)


def rate_bound(problem_at: ProblemAt, sessions: int) -> float:
    """Tokens per second that no pipelines over these devices exceed, whatever they are and however they share.

    All devices at work on nothing but layers, or all sequences on their way without waiting, whichever is slower.
    """
    best = 0.0
    for rows in range(1, sessions + 1):
        # Fewest sessions, most memory. A ring of as many micro-batches as sessions allow bounds L of every one of them.
        period = Ring(problem_at(rows, rows), max(1, sessions // rows)).period_bound()
        best = max(best, 1e3 * rows / period) if period > 0 else float("inf")
    return best
