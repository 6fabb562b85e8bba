"""The placement of least energy per token: exact, although devices that wait draw power too.

A used device draws its idle power for as long as a token takes, wherever it is computed, and the difference to its
active power while it computes itself. So a placement's energy is net + idle power of its devices · time: additive once
that power is known, which it is not before the placement is. EdgeShard (arXiv 2405.14371) has no energy objective.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeAlias

import numpy as np

from planner.latency import cheapest_route
from planner.problem import Costs, Problem, Segment, Solution
from planner.subproblem import limited

ProblemAtIdle: TypeAlias = Callable[[float], Problem]
"""Idle power in W → the problem whose costs are J per token: (active - idle) · own time + that power · everything's
time. Costs grow in a straight line with the power; nothing else depends on it."""

MAX_BOXES = 5_000
"""Searches before the rest is left to the bound. 15 devices in 4 classes have 72 sets of devices."""

PROVEN = 1e-10
"""Relative gap up to which a bound is the value: rounding, not search."""

Used: TypeAlias = tuple[int, ...]
"""[K] devices per class."""


def least_energy(
    problem_at_idle: ProblemAtIdle, idle_w_by_class: Costs, *, max_boxes: int = MAX_BOXES
) -> Solution | None:
    """The placement of least J per token, None when nothing fits.

    Branches over how many devices of each class are used, best bound first. A box from `low` to `high` devices charges
    the idle power of `low` for the placement's time and that of any further device for the shortest time there is: no
    energy in the box is below that cheapest route. If the route uses no more than `low`, it is the box's optimum; else
    the box is split at a class of which it uses more.
    """
    without = problem_at_idle(0.0)
    idle_w = np.where(np.arange(without.num_classes) == without.source, 0.0, idle_w_by_class)
    always_w = float(idle_w_by_class[without.source])
    seconds = _difference(problem_at_idle(1.0), without)

    @cache
    def quickest(high: Used) -> Solution | None:
        return cheapest_route(limited(seconds, high))

    def charged_w(used: Used) -> float:
        return always_w + float(np.dot(used, idle_w))

    best: Solution | None = None
    searches = 0
    waiting: list[tuple[float, int, Used, Used, tuple[Segment, ...]]] = []

    def search(low: Used, high: Used) -> None:
        """Put the box among the waiting, and its route's true energy to the test."""
        nonlocal best, searches
        searches += 1
        shortest = quickest(high)
        if shortest is None:
            return
        problem = limited(problem_at_idle(charged_w(low)), high)
        prices = idle_w * shortest.lower_bound
        route = cheapest_route(replace(problem, stage_cost=problem.stage_cost + prices))
        if route is None:
            return
        energy = problem_at_idle(charged_w(_used(without, route.segments))).cost_of(route.segments)
        if best is None or energy < best.cost:
            best = Solution(route.segments, energy, energy, "exact")
        bound = route.lower_bound - float(np.dot(low, prices))
        heapq.heappush(waiting, (bound, searches, low, high, route.segments))

    search(tuple(int(k == without.source) for k in range(without.num_classes)), without.counts)
    lower_bound = math.inf
    while waiting and best is not None and waiting[0][0] < best.cost * (1 - PROVEN):
        bound, _, low, high, segments = heapq.heappop(waiting)
        used = _used(without, segments)
        solved = charged_w(used) <= charged_w(low)
        if solved or searches >= max_boxes:
            lower_bound = min(lower_bound, bound)
            if solved:
                continue
            break
        dearest = int(np.argmax((np.array(used) - low) * idle_w))
        search(low, tuple(used[k] - 1 if k == dearest else most for k, most in enumerate(high)))
        search(tuple(used[k] if k == dearest else least for k, least in enumerate(low)), high)
    if best is None or lower_bound >= best.cost * (1 - PROVEN):
        return best
    return replace(best, lower_bound=lower_bound, method="bounded")


def _difference(more: Problem, less: Problem) -> Problem:
    """The problem whose costs are what one costs more than the other."""
    linked = np.isfinite(less.hop_cost_per_byte) & np.isfinite(more.hop_cost_per_byte)
    return replace(
        less,
        unit_cost=more.unit_cost - less.unit_cost,
        stage_cost=more.stage_cost - less.stage_cost,
        hop_cost=more.hop_cost - less.hop_cost,
        hop_cost_per_byte=np.subtract(
            more.hop_cost_per_byte, less.hop_cost_per_byte, out=np.full_like(less.hop_cost, np.inf), where=linked
        ),
        return_cost=more.return_cost - less.return_cost,
    )


def _used(problem: Problem, segments: Sequence[Segment]) -> Used:
    """Devices per class. The source's two segments count twice; its idle power is charged apart."""
    devices = Counter(segment.device_class for segment in segments)
    return tuple(devices[k] for k in range(problem.num_classes))
