"""The count-tracking dynamic programme under the exact planners: cheapest ways on from every boundary.

A state is a boundary, the class whose segment ended there, and how many devices of each *tracked* class are left. A
class that is not tracked may be used any number of times, so the value is a lower bound that is exact when the way
found respects all counts, and exact anyway when every class is tracked. EdgeShard (arXiv 2405.14371) equations 5 to 8,
with the used devices in the state, which Algorithm 1 lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.problem import Ceiling, Costs, Problem, Segment

CEILING_SLACK = 1e-12
"""Relative: a ceiling that was computed as some segment's cost admits that segment, however its terms were added."""
SEGMENT_PENALTY = 1e-11
"""Of the total cost, added per segment so that of equal placements the one with the fewest segments is cheapest."""
TIE_TOLERANCE = 1e-13
"""Of the total cost: rounding of sums, far below the penalty."""

Reach = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Space:
    """A problem with its ceiling made ready to search: how far segments reach and what every hop costs.

    `first_stops` and `last_start` matter with `ends_at_source`: the source's first segment ends at one of
    `first_stops`, and its last may begin at `last_start` or later. Both together are for the caller to check.
    """

    problem: Problem
    ceiling: Ceiling | None = None
    first_stops: range | None = None
    last_start: int = 1

    @cached_property
    def middle(self) -> tuple[int, ...]:
        """All classes but the source's, which is only used at the ends. K' of them."""
        return tuple(k for k in range(self.problem.num_classes) if k != self.problem.source)

    @cached_property
    def fits(self) -> NDArray[np.bool_]:
        """[K, N, N + 1]: whether a class may hold layers [i, j)."""
        p = self.problem
        held = p.stage_bytes[:, None, None] + p.bytes_before[:, None, :] - p.bytes_before[:, :-1, None]
        fits = held <= p.memory_bytes[:, None, None]
        if self.ceiling is not None:
            service = p.stage_cost[:, None, None] + p.cost_before[:, None, :] - p.cost_before[:, :-1, None]
            fits &= service <= (self.ceiling.stage_cost * (1 + CEILING_SLACK))[:, None, None]
        boundaries = np.arange(p.num_layers + 1)
        result: NDArray[np.bool_] = fits & (boundaries > boundaries[:-1, None])
        return result

    @cached_property
    def reach(self) -> Reach:
        """[K, N]: the last boundary where a segment that begins at i may end; i if it cannot."""
        result: Reach = self.fits.sum(axis=2) + np.arange(self.problem.num_layers)
        return result

    @cached_property
    def scale(self) -> float:
        """About the size of a total cost, for the tolerances."""
        p = self.problem
        return float(p.unit_cost.min(axis=0).sum() + p.stage_cost[p.source]) or float(p.unit_cost.max()) or 1.0

    @cached_property
    def penalty(self) -> float:
        return SEGMENT_PENALTY * self.scale

    @cached_property
    def hops(self) -> Costs:
        """[N, K, K]: a hop at boundary i; inf without a link, above the ceiling, or from a lone device to itself."""
        p = self.problem
        linked = np.isfinite(p.hop_cost_per_byte)
        transfer = p.boundary_bytes[:-1, None, None] * np.where(linked, p.hop_cost_per_byte, 0.0)
        allowed = np.broadcast_to(linked, transfer.shape).copy()
        if self.ceiling is not None:
            allowed &= transfer <= self.ceiling.transfer_cost * (1 + CEILING_SLACK)
        alone = np.flatnonzero(np.array(p.counts) == 1)
        allowed[:, alone, alone] = False
        hops = np.full((p.num_layers, p.num_classes, p.num_classes), np.inf)
        hops[1:][allowed] = (p.hop_cost + transfer)[allowed]
        return hops

    @cached_property
    def last_costs(self) -> Costs:
        """[N]: the source's last segment from boundary i, with `ends_at_source`; inf before `last_start`."""
        p = self.problem
        before = p.cost_before[p.source]
        costs: Costs = p.stage_cost[p.source] + before[-1] - before[:-1] + p.return_cost[p.source] + self.penalty
        starts = np.arange(p.num_layers)
        return np.where((starts >= self.last_start) & self.fits[p.source, :, -1], costs, np.inf)

    @cached_property
    def stops(self) -> range:
        """Where the first segment may end."""
        stops = range(1, int(self.reach[self.problem.source, 0]) + 1)
        if self.first_stops is None:
            return stops
        return range(max(stops.start, self.first_stops.start), min(stops.stop, self.first_stops.stop))


@dataclass(frozen=True, eq=False)
class Counting:
    """Tracked classes and their counts in mixed radix: V vectors of devices left, 0 to all."""

    tracked: tuple[int, ...]
    counts: tuple[int, ...]

    @cached_property
    def strides(self) -> dict[int, int]:
        strides, stride = {}, 1
        for k in self.tracked:
            strides[k] = stride
            stride *= self.counts[k] + 1
        return strides

    @property
    def vectors(self) -> int:
        return math.prod(self.counts[k] + 1 for k in self.tracked)


@dataclass(frozen=True, eq=False)
class Ways:
    """The cheapest ways on: what `ways_on` computed, and the cheapest whole way."""

    space: Space
    counting: Counting
    stage_cost: Costs
    """[K], with the penalty and the price of a device."""
    table: Costs
    """[K', N + 1, V]: taking a class with V left and ending its segment at j, plus its cost of all layers before j."""
    totals: Costs
    """[N + 1]: of whole ways by the end of their first segment."""

    @property
    def value(self) -> float:
        return float(self.totals.min())

    def cheapest(self) -> tuple[Segment, ...]:
        """The cheapest way by walking from the source; of equal ones the lexicographically first."""
        space, p = self.space, self.space.problem
        tolerance = TIE_TOLERANCE * space.scale
        at = _first_within(self.totals, tolerance)
        segments = [Segment(p.source, 0, at)]
        left = self.counting.vectors - 1
        while at < p.num_layers:
            options = self._options(at, segments[-1].device_class, left)
            index = _first_within(options, tolerance)
            k, stop = divmod(index, p.num_layers + 1)
            segments.append(Segment(k, at, stop))
            left -= self.counting.strides.get(k, 0)
            at = stop
        return tuple(segments)

    def _options(self, at: int, last: int, left: int) -> Costs:
        """[K * (N + 1)]: total of going on with a class up to a boundary, in lexicographic order."""
        space, p = self.space, self.space.problem
        options = np.full((p.num_classes, p.num_layers + 1), np.inf)
        hop = space.hops[at, last]
        for row, k in enumerate(space.middle):
            stops = slice(at + 1, int(space.reach[k, at]) + 1)
            options[k, stops] = hop[k] + self.stage_cost[k] - p.cost_before[k, at] + self.table[row, stops, left]
        if p.ends_at_source:
            options[p.source, -1] = hop[p.source] + space.last_costs[at]
        return options.ravel()


def ways_on(space: Space, tracked: Iterable[int], prices: Costs | None = None) -> Ways:
    """Fill the table from the last boundary back. `prices` [K] are charged per use of a class."""
    p = space.problem
    counting = Counting(tuple(tracked), p.counts)
    middle = np.array(space.middle, dtype=np.int64)
    full, layers = counting.vectors - 1, p.num_layers
    stage_cost = p.stage_cost + space.penalty + (0.0 if prices is None else prices)
    table = np.empty((len(middle), layers + 1, counting.vectors))
    totals = np.full(layers + 1, np.inf)
    hops = space.hops[:, middle[:, None], middle]
    from_source = space.hops[:, p.source, middle]
    to_source = space.hops[:, :, p.source]
    before = p.cost_before[middle]
    segment_cost = stage_cost[middle][:, None] - before
    reach = space.reach[middle].tolist()

    def store(boundary: int, onward: Costs) -> None:
        for row, k in enumerate(space.middle):
            _take(table[row, boundary], onward[row], counting, k, before[row, boundary])

    ends = np.full(len(middle), np.inf) if p.ends_at_source else p.return_cost[middle]
    store(layers, np.broadcast_to(ends[:, None], (len(middle), counting.vectors)))
    begun = np.empty((len(middle), counting.vectors))
    for at in range(layers - 1, 0, -1):
        for row in range(len(middle)):
            stop = reach[row][at] + 1
            if stop == at + 1:
                begun[row] = np.inf
            else:
                table[row, at + 1 : stop].min(axis=0, out=begun[row])
                begun[row] += segment_cost[row, at]
        onward = _hop(hops[at], begun)
        first = (from_source[at] + begun[:, full]).min() if len(middle) else np.inf
        if p.ends_at_source:
            last = space.last_costs[at]
            np.minimum(onward, (to_source[at, middle] + last)[:, None], out=onward)
            first = min(first, to_source[at, p.source] + last)
        store(at, onward)
        totals[at] = first
    totals[layers] = p.return_cost[p.source]
    totals += stage_cost[p.source] + p.cost_before[p.source]
    allowed = np.zeros(layers + 1, dtype=bool)
    allowed[space.stops.start : space.stops.stop] = True
    totals[~allowed] = np.inf
    return Ways(space, counting, stage_cost, table, totals)


def _take(into: Costs, onward: Costs, counting: Counting, k: int, before: float) -> None:
    """What lies onward from V left after a device of `k` was taken: one less of a tracked class."""
    stride = counting.strides.get(k)
    if stride is None:
        np.add(onward, before, out=into)
        return
    shape = (-1, counting.counts[k] + 1, stride)
    target = into.reshape(shape)
    np.add(onward.reshape(shape)[:, :-1], before, out=target[:, 1:])
    target[:, 0] = np.inf


def _hop(hops: Costs, begun: Costs) -> Costs:
    """[K', V]: the least over the next class of the hop and what it begins."""
    if begun.size * len(begun) <= 1 << 13:
        least: Costs = (hops[:, :, None] + begun).min(axis=1, initial=np.inf)
        return least
    onward: Costs = hops[:, 0, None] + begun[0]
    scratch = np.empty_like(onward)
    for row in range(1, len(begun)):
        np.add(hops[:, row, None], begun[row], out=scratch)
        np.minimum(onward, scratch, out=onward)
    return onward


def _first_within(values: Costs, tolerance: float) -> int:
    return int(np.argmax(values <= values.min() + tolerance))
