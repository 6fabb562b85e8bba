"""The cheapest route of an additive problem, exactly: counts are tracked only where a relaxation breaks them.

EdgeShard (arXiv 2405.14371) equations 3 to 8 with what its Algorithm 1 leaves out: which devices are used already,
classes of equal devices, an exact fit, and the token's way back. Decremental state space relaxation (Righini and
Salani, 2008): every relaxed value is a lower bound, and a relaxed way that respects all counts is optimal.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.errors import Infeasible
from planner.label_search import LabelSearch
from planner.problem import Ceiling, Problem, Segment, Solution
from planner.route_search import CEILING_SLACK, Counting, Space, Ways, ways_on

STATE_LIMIT = 24_000_000
"""States (boundary, class, devices left) of one table: 8 bytes each, and about a tenth of a microsecond."""
ALL_AT_ONCE = 128
"""Vectors of counts up to which tracking every class costs no more than finding out which to track."""
FIRST_WIDTH = 256
LABEL_STATES = 12_000
"""Partial ways kept per boundary cost about as much as this many states each."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one search ended with: a way that respects counts (None: none found), and a value none undercuts."""

    segments: tuple[Segment, ...] | None
    bound: float
    exact: bool


def cheapest_route(
    problem: Problem, ceiling: Ceiling | None = None, *, state_limit: int = STATE_LIMIT
) -> Solution | None:
    """The cheapest placement, None if nothing fits. Of equal costs the fewest segments, then the lexicographic first.

    Exact unless the states needed exceed `state_limit`; then the method is "bounded" and the lower bound is proven.
    Raises Infeasible where the limit came before any placement, so that not even None is proven.
    """
    if problem.ends_at_source:
        return _with_both_ends(problem, ceiling, state_limit)
    found = _search(Space(problem, ceiling), state_limit)
    if found.segments is None:
        return None
    cost = problem.cost_of(found.segments)
    return Solution(found.segments, cost, cost if found.exact else min(cost, found.bound), _method(found.exact))


def _search(space: Space, state_limit: int) -> Found:
    """Track the classes that the relaxed way overuses, and search again, until it overuses none or the limit is met."""
    p = space.problem
    tracked: tuple[int, ...] = ()
    if Counting(space.middle, p.counts).vectors <= ALL_AT_ONCE:
        tracked = space.middle
    while True:
        ways = ways_on(space, tracked)
        if math.isinf(ways.value):
            return Found(None, math.inf, exact=True)
        segments = ways.cheapest()
        overused = overuse(p, segments)
        if not overused:
            return Found(segments, ways.value, exact=True)
        more = _affordable(space, tracked, overused, state_limit)
        if more == tracked:
            return _complete(ways, state_limit)
        tracked = more


def _affordable(
    space: Space, tracked: tuple[int, ...], overused: Mapping[int, int], state_limit: int
) -> tuple[int, ...]:
    """Tracked and overused classes, the most overused first, as far as the table stays within the limit."""
    p, chosen = space.problem, tracked
    for k in sorted(overused, key=lambda k: (-overused[k] / p.counts[k], p.counts[k], k)):
        more = tuple(sorted((*chosen, k)))
        if Counting(more, p.counts).vectors * len(space.middle) * (p.num_layers + 1) <= state_limit:
            chosen = more
    return chosen


def _complete(ways: Ways, state_limit: int) -> Found:
    """Respect real counts from the relaxed table on, with ever more partial ways, until it is proven or too many."""
    way: tuple[Segment, ...] | None = None
    best, bound, width = math.inf, ways.value, FIRST_WIDTH
    while True:
        done = LabelSearch(ways, width, best).run()
        way, best, bound = done.segments or way, done.cost, max(bound, done.bound)
        exact = bound >= best
        if exact or width * LABEL_STATES >= state_limit:
            if way is None and not exact:
                tried = f"{width} partial routes per boundary were followed, the rest not"
                raise Infeasible("found no placement, and did not prove that there is none", [tried])
            return Found(way, bound - ways.space.penalty * ways.space.problem.num_layers, exact)
        width *= 8


def overuse(problem: Problem, segments: Sequence[Segment]) -> dict[int, int]:
    """How many devices more than there are a way uses, by class; the source's class is never overused."""
    used = Counter(segment.device_class for segment in segments if segment.device_class != problem.source)
    return {k: count - problem.counts[k] for k, count in used.items() if count > problem.counts[k]}


def _with_both_ends(problem: Problem, ceiling: Ceiling | None, state_limit: int) -> Solution | None:
    """First and last segment on the source, which must hold both: branch on where the first one ends.

    For first segments that end in [low, high), the last one may begin no earlier than beside the shortest of them;
    that is a relaxation, and where its optimum breaks the rule, the range is split so that neither half admits it.
    """
    earliest = _earliest_last(problem, ceiling)
    stops = Space(problem, ceiling).stops
    best: Candidate | None = None
    bound, exact = math.inf, True
    waiting: list[tuple[float, int, int]] = [(0.0, stops.start, stops.stop)] if stops else []
    while waiting:
        known, low, high = heapq.heappop(waiting)
        if best is not None and known > best[0]:
            bound = min(bound, known)
            break
        space = Space(problem, ceiling, range(low, high), earliest[low])
        found = _search(space, state_limit)
        segments = found.segments
        if segments is None:
            continue
        last = segments[-1]
        if len(segments) > 1 and last.start < earliest[segments[0].stop]:
            middle = next(stop for stop in range(low, high) if earliest[stop] > last.start)
            heapq.heappush(waiting, (found.bound, low, middle))
            heapq.heappush(waiting, (found.bound, middle, high))
            continue
        bound, exact = min(bound, found.bound), exact and found.exact
        cost = problem.cost_of(segments) + space.penalty * len(segments)
        candidate = (cost, len(segments), [(s.device_class, s.stop) for s in segments], segments)
        if best is None or _precedes(candidate, best, space.penalty / 2):
            best = candidate
    if best is None:
        return None
    cost = problem.cost_of(best[-1])
    return Solution(best[-1], cost, cost if exact else min(cost, bound), _method(exact))


def _earliest_last(problem: Problem, ceiling: Ceiling | None) -> list[int]:
    """[N + 1]: where the source's last segment may begin beside a first one [0, stop); N if nowhere."""
    p, k = problem, problem.source
    stops = np.arange(p.num_layers + 1)
    held = p.stage_bytes[k] + p.bytes_before[k, :, None] + p.bytes_before[k, -1] - p.bytes_before[k]
    allowed = held <= p.memory_bytes[k]
    if ceiling is not None:
        before = p.cost_before[k]
        service = 2 * p.stage_cost[k] + before[:, None] + before[-1] - before
        allowed &= service <= ceiling.stage_cost[k] * (1 + CEILING_SLACK)
    allowed &= (stops >= stops[:, None]) & (stops < p.num_layers)
    return [int(row.argmax()) if row.any() else p.num_layers for row in allowed]


Candidate = tuple[float, int, list[tuple[int, int]], tuple[Segment, ...]]


def _precedes(a: Candidate, b: Candidate, tolerance: float) -> bool:
    return a[0] < b[0] - tolerance or (a[0] <= b[0] + tolerance and a[1:3] < b[1:3])


def _method(exact: bool) -> Literal["exact", "bounded"]:
    return "exact" if exact else "bounded"
