"""The shortest period of a pipeline that feeds itself, for one number of micro-batches: exact.

A placement whose busiest server or link takes B per step and whose micro-batch takes L alone has the period
max(B, L / m). EdgeShard (arXiv 2405.14371, equations 9 and 10, Algorithm 2) minimises B alone, which adds stages and
lengthens L; here both count. `throughput` chooses m and the rows, `replicas` copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planner.latency import cheapest_route
from planner.problem import Ceiling, Costs, Problem, Segment, Solution

SAME = 1e-11
"""Relative: service times closer than this are one candidate. Rounding of sums stays below, measurements above."""


@dataclass(frozen=True, eq=False)
class Ring:
    """One step's problem and how many micro-batches circulate, in each of `copies` equal pipelines.

    The copies have the source's first segment in common (and its last, if it ends there): the source's server takes
    `copies` micro-batches per period.
    """

    problem: Problem
    micro_batches: int
    copies: int = 1
    search: Callable[[Problem, Ceiling | None], Solution | None] = cheapest_route
    """The latency search: what it leaves open widens the gap, never breaks the bound."""

    def bottleneck(self, segments: Sequence[Segment]) -> float:
        """The busiest server's or link's time per period."""
        problem, own = self.problem, 0.0
        busy = [0.0]
        for segment in segments:
            cost = problem.segment_cost(segment)
            if segment.device_class == problem.source:
                own += cost
            else:
                busy.append(cost)
        busy.append(self.copies * own)
        busy += [problem.transfer_cost(a.device_class, b.device_class, b.start) for a, b in pairwise(segments)]
        return max(busy)

    def period(self, segments: Sequence[Segment]) -> float:
        """Time per micro-batch of one copy; inf for a placement that breaks a rule."""
        return max(self.bottleneck(segments), self.problem.cost_of(segments) / self.micro_batches)

    def cheapest_within(self, service: float) -> Solution | None:
        """The least L of placements in which no server or link takes longer than `service`."""
        if math.isinf(service):
            return self.search(self.problem, None)
        service *= 1 + SAME / 2
        stage = np.full(self.problem.num_classes, service)
        stage[self.problem.source] /= self.copies
        return self.search(self.problem, Ceiling(stage, service))

    def service_times(self) -> Costs:
        """Every value the bottleneck of a placement can take, ascending: of segments that fit and links that exist."""
        problem, layers = self.problem, self.problem.num_layers
        starts, stops = np.triu_indices(layers)
        stops = stops + 1
        values: list[Costs] = []
        for k in range(problem.num_classes):
            cost, size = problem.cost_before[k], problem.bytes_before[k]
            # The source begins; its own segments may be two (their costs add up), everyone else's start later.
            begins = (starts == 0) == (k == problem.source)
            start, stop = starts[begins], stops[begins]
            fits = problem.stage_bytes[k] + size[stop] - size[start] <= problem.memory_bytes[k]
            times = problem.stage_cost[k] + cost[stop[fits]] - cost[start[fits]]
            values.append(times * self.copies if k == problem.source else times)
        if problem.ends_at_source:
            cost, size = problem.cost_before[problem.source], problem.bytes_before[problem.source]
            first, last = (boundary + 1 for boundary in np.triu_indices(layers - 1))
            held = problem.stage_bytes[problem.source] + size[first] + size[-1] - size[last]
            fits = held <= problem.memory_bytes[problem.source]
            both = 2 * problem.stage_cost[problem.source] + cost[first] + cost[-1] - cost[last]
            values.append(both[fits] * self.copies)
        per_byte = problem.hop_cost_per_byte[np.isfinite(problem.hop_cost_per_byte)]
        values.append(np.multiply.outer(np.unique(per_byte), np.unique(problem.boundary_bytes[:-1])).ravel())
        return _distinct(np.concatenate(values))

    def period_bound(self) -> float:
        """No placement's period is below this; found without a search, inf when memory as a whole is too small.

        Layers become a fluid of `amount` per layer that every device takes at its own time and bytes per unit, no
        layer for less than it really costs: as much to the fastest as a period and its memory allow, and so on.
        """
        problem = self.problem
        source_ends = (0, -1) if problem.ends_at_source and problem.num_layers > 1 else (0,)
        own = float(problem.stage_cost[problem.source] + problem.unit_cost[problem.source, list(source_ends)].sum())
        room = problem.memory_bytes - problem.stage_bytes
        usable = np.flatnonzero(room >= problem.unit_bytes.min(axis=1))
        if not len(usable):
            return math.inf
        costs = problem.unit_cost[usable]
        times = costs.mean(axis=1)
        if times.min() <= 0:
            return max(self.copies * own, float(costs.min(axis=0).sum()) / self.micro_batches)
        amounts = (costs / times[:, None]).min(axis=0)
        real = amounts > 0
        sizes = (problem.unit_bytes[usable][:, real] / amounts[real]).min(axis=1, initial=math.inf)
        held = np.divide(room[usable], sizes, out=np.full(len(usable), math.inf), where=sizes > 0)
        shares = np.where(usable == problem.source, self.copies, 1)
        counts = np.array(problem.counts)[usable]
        fastest_first = [
            (float(times[k]), float(times[k] * shares[k]), float(held[k]), int(counts[k])) for k in np.argsort(times)
        ]
        return max(self.copies * own, _fluid_period(fastest_first, float(amounts.sum()), self.micro_batches))


def _fluid_period(devices: Sequence[tuple[float, float, float, int]], amount: float, micro_batches: int) -> float:
    """The least period in which devices of (time, server's time, most held, count) take the amount, from below."""

    def enough(period: float) -> bool:
        left, round_cost = amount, 0.0
        for time, served, held, count in devices:
            taken = min(left, count * min(held, period / served))
            left -= taken
            round_cost += taken * time
        return left <= amount * SAME and round_cost <= micro_batches * period * (1 + SAME)

    high = amount * max(served for _, served, _, _ in devices)
    if not enough(high):
        return math.inf
    low = 0.0
    while high - low > high * SAME:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low


@dataclass(frozen=True, slots=True)
class ShortestPeriod:
    """The best placement found, and the period no placement undercuts."""

    segments: tuple[Segment, ...] | None
    """None: no placement has a period below the asked one."""
    period: float
    lower_bound: float


def shortest_period(ring: Ring, *, below: float = math.inf) -> ShortestPeriod:
    """The placement of least max(B, L / m) among those below `below`.

    With v(θ) = max(θ, Lmin(θ) / m) over the finite set of service times θ, Lmin does not rise with θ: the optimum is
    v at the crossing or its predecessor, and bisection finds them with one latency search per look. Each look also
    proves something: a placement within θ has L ≥ Lmin(θ), any other has a B of at least the next service time.
    """
    services = ring.service_times()
    if not len(services):
        return ShortestPeriod(None, below, math.inf)
    lower_bound = ring.period_bound()
    segments: tuple[Segment, ...] | None = None
    period, unbounded, ring_binds_below = below, math.isinf(below), 0
    look = len(services)
    while True:
        # Worth a look: service times below the best period, from the last one under what is proven.
        stop = int(np.searchsorted(services, period * (1 - SAME)))
        under_bound = int(np.searchsorted(services, lower_bound * (1 + SAME), side="right")) - 1
        start = max(ring_binds_below, under_bound, 0)
        if start >= stop:
            break
        # The first look is at the top: it says whether there is anything at all, and gives the first incumbent.
        look = stop - 1 if look == len(services) else (start + stop - 1) // 2
        found = ring.cheapest_within(math.inf if unbounded else float(services[look]))
        proven = math.inf if found is None else found.lower_bound / ring.micro_batches
        following = float(services[look + 1]) if look + 1 < len(services) else math.inf
        lower_bound = max(lower_bound, min(proven, following))
        if found is not None and ring.period(found.segments) < period:
            segments, period = found.segments, ring.period(found.segments)
        if found is None or found.cost / ring.micro_batches > services[look]:
            ring_binds_below = look + 1
        unbounded = False
    if stop == 0 or lower_bound >= period * (1 - 10 * SAME):
        lower_bound = period
    return ShortestPeriod(segments, period, lower_bound)


def _distinct(values: Costs) -> Costs:
    """Ascending, the largest of each run of values that rounding alone tells apart."""
    ascending = np.unique(values)
    if not len(ascending):
        return ascending
    return np.append(ascending[:-1][ascending[1:] > ascending[:-1] * (1 + SAME)], ascending[-1])
