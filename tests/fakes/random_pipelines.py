"""Small pipelines in which rows and sessions matter, and every choice there is, tried one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.problem import Problem, Segment
from planner.throughput import ProblemAt
from tests.fakes.random_problems import random_problem


def random_problem_at(seed: int, *, max_layers: int = 8, max_devices: int = 5) -> ProblemAt:
    """A cluster whose costs grow with rows, slower than in proportion, and whose memory shrinks with sessions."""
    base = random_problem(seed, max_layers=max_layers, max_devices=max_devices)
    rng = np.random.default_rng([seed, 2])
    growth = rng.choice([0.0, 0.1, 0.5, 1.0], (base.num_classes, 1))
    kv_bytes = rng.choice([0, 0, 1, 2]) * np.ones_like(base.unit_bytes)
    slot_bytes = rng.integers(0, 2, base.num_classes)
    links = rng.choice([0.1, 0.1, 1.0])
    room = int(rng.integers(0, 2 * base.num_layers + 1))

    def problem_at(rows: int, sessions: int) -> Problem:
        return replace(
            base,
            unit_cost=base.unit_cost * (1 + growth * (rows - 1)),
            boundary_bytes=base.boundary_bytes * rows * links,
            hop_cost=base.hop_cost * links,
            unit_bytes=base.unit_bytes + kv_bytes * (sessions - 1),
            stage_bytes=base.stage_bytes + slot_bytes * (sessions - 1),
            memory_bytes=base.memory_bytes + room,
        )

    return problem_at


@dataclass(frozen=True)
class Tried:
    """One placement, costed here and not by the planner."""

    segments: tuple[Segment, ...]
    round_ms: float
    own_ms: float
    """What the source computes per step."""
    others_ms: float
    """The busiest other device or link."""

    def period(self, micro_batches: int, copies: int = 1) -> float:
        return max(self.others_ms, copies * self.own_ms, self.round_ms / micro_batches)


def placements(problem: Problem) -> Iterator[Tried]:
    """All that respect counts and links; memory is left to `Problem.allows`."""
    yield from _extend(problem, (), list(problem.counts), Tried((), 0.0, 0.0, 0.0))


def _extend(problem: Problem, before: tuple[Segment, ...], left: list[int], tried: Tried) -> Iterator[Tried]:
    start = before[-1].stop if before else 0
    if start == problem.num_layers:
        end = before[-1].device_class
        if not problem.ends_at_source or end == problem.source:
            yield replace(tried, segments=before, round_ms=tried.round_ms + float(problem.return_cost[end]))
        return
    for k in range(problem.num_classes):
        again = bool(before) and problem.ends_at_source and k == problem.source
        if (not before and k != problem.source) or (left[k] == 0 and not again):
            continue
        hop_ms = link_ms = 0.0
        if before:
            a = before[-1].device_class
            link_ms = float(problem.boundary_bytes[start - 1] * problem.hop_cost_per_byte[a, k])
            hop_ms = float(problem.hop_cost[a, k]) + link_ms
        if math.isinf(hop_ms):
            continue
        left[k] -= not again
        for stop in (problem.num_layers,) if again else range(start + 1, problem.num_layers + 1):
            compute_ms = float(problem.stage_cost[k] + problem.unit_cost[k, start:stop].sum())
            own = k == problem.source
            longer = Tried(
                (),
                tried.round_ms + hop_ms + compute_ms,
                tried.own_ms + own * compute_ms,
                max(tried.others_ms, link_ms, 0.0 if own else compute_ms),
            )
            yield from _extend(problem, (*before, Segment(k, start, stop)), left, longer)
        left[k] += not again


def best_period(problem: Problem, micro_batches: int, copies: int = 1) -> float:
    """The shortest; inf when nothing fits."""
    tried = (each for each in placements(problem) if problem.allows(each.segments))
    return min((each.period(micro_batches, copies) for each in tried), default=math.inf)


def best_rate(problem_at: ProblemAt, sessions: int, fixed: tuple[int, int] | None = None) -> float:
    """The highest over all pairs m · mu <= sessions; 0 when nothing fits."""
    pairs = [(m, rows) for rows in range(1, sessions + 1) for m in range(1, sessions // rows + 1)]
    best = 0.0
    for rows in sorted({rows for _, rows in pairs} if fixed is None else {fixed[1]}):
        micro_batches = [m for m, mu in pairs if mu == rows] if fixed is None else [fixed[0]]
        all_placements = list(placements(problem_at(rows, rows)))
        for m in micro_batches:
            problem = problem_at(rows, rows * m)
            for each in all_placements:
                rate = 1e3 * rows / each.period(m)
                if rate > best and problem.allows(each.segments):
                    best = rate
    return best
