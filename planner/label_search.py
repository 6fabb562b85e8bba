"""Ways with real counts, found and bounded where tables of counts would be too large.

Partial ways (labels) are extended boundary by boundary. A relaxed table gives what each still costs at least; labels
that cannot beat the best way found are dropped, and of the others only the most promising `width` per boundary are
kept. The least bound among those not kept is what no way can undercut: if it is not below the best way, that way is
optimal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.problem import Costs, Segment
from planner.route_search import TIE_TOLERANCE, Space, Ways

Whole = NDArray[np.int64]


class Labels(NamedTuple):
    """Partial ways that end at one boundary."""

    bound: Costs
    """[L], least total of any whole way that begins so."""
    cost: Costs
    """[L]"""
    last: Whole
    """[L], class of the last segment."""
    left: NDArray[np.int32]
    """[L, K'], devices left of every class but the source's."""
    parent: Whole
    """[L], number of the label that was extended; -1 at the source."""

    def chosen(self, index: NDArray[np.intp]) -> Labels:
        return Labels(self.bound[index], self.cost[index], self.last[index], self.left[index], self.parent[index])


@dataclass(frozen=True)
class Completed:
    """The best whole way with real counts, if any, and what no whole way can undercut."""

    segments: tuple[Segment, ...] | None
    cost: float
    bound: float


@dataclass
class LabelSearch:
    """One run. `best` is the cost of a way already known, which only cheaper ways replace."""

    ways: Ways
    width: int
    best: float = math.inf
    cut: float = math.inf
    way: tuple[Segment, ...] | None = None
    waiting: dict[int, list[Labels]] = field(default_factory=dict)
    numbered: list[tuple[int, int, int]] = field(default_factory=list)
    """Of every label kept: class, boundary, parent."""

    @property
    def space(self) -> Space:
        return self.ways.space

    def run(self) -> Completed:
        space, p = self.space, self.space.problem
        for stop in space.stops:
            cost = float(self.ways.stage_cost[p.source] + p.cost_before[p.source, stop])
            if stop == p.num_layers:
                self._complete(cost + float(p.return_cost[p.source]), p.source, -1)
            elif math.isfinite(self.ways.totals[stop]):
                left = np.array([[p.counts[k] for k in space.middle]], dtype=np.int32)
                only = np.array([p.source])
                bound = self.ways.totals[stop : stop + 1]
                self._wait(stop, Labels(bound, np.array([cost]), only, left, np.array([-1])))
        for at in range(1, p.num_layers):
            labels = self._kept(self.waiting.pop(at, []))
            if labels is not None:
                self._extend(at, labels)
        return Completed(self.way, self.best, min(self.best, self.cut))

    def _kept(self, waiting: list[Labels]) -> Labels | None:
        """The cheapest of those that agree on what is left and on the last class; then the `width` best."""
        if not waiting:
            return None
        bound, cost, last, left, parent = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        labels = Labels(bound, cost, last, left, parent)
        labels = labels.chosen(np.flatnonzero(labels.bound < self._worth))
        state = np.column_stack([labels.last, labels.left])
        order = np.lexsort((labels.cost, *state.T))
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = (state[order[1:]] != state[order[:-1]]).any(axis=1)
        labels = labels.chosen(order[fresh])
        if len(labels.bound) > self.width:
            order = np.argsort(labels.bound, kind="stable")
            self.cut = min(self.cut, float(labels.bound[order[self.width]]))
            labels = labels.chosen(order[: self.width])
        return labels

    @property
    def _worth(self) -> float:
        return self.best - TIE_TOLERANCE * self.space.scale

    def _extend(self, at: int, labels: Labels) -> None:
        space, p, ways = self.space, self.space.problem, self.ways
        first = len(self.numbered)
        self.numbered += [(int(last), at, int(parent)) for last, parent in zip(labels.last, labels.parent, strict=True)]
        tracked = [row for row, k in enumerate(space.middle) if k in ways.counting.strides]
        strides = np.array([ways.counting.strides[space.middle[row]] for row in tracked], dtype=np.int64)
        vector = labels.left[:, tracked].astype(np.int64) @ strides
        if p.ends_at_source and len(labels.cost):
            totals = labels.cost + space.hops[at, labels.last, p.source] + space.last_costs[at]
            ended = int(totals.argmin())
            self._complete(float(totals[ended]), p.source, first + ended)
        for row, k in enumerate(space.middle):
            stops = np.arange(at + 1, int(space.reach[k, at]) + 1)
            base = labels.cost + space.hops[at, labels.last, k] + ways.stage_cost[k] - p.cost_before[k, at]
            able = np.flatnonzero((labels.left[:, row] > 0) & np.isfinite(base))
            if not len(able) or not len(stops):
                continue
            bounds = base[able] + ways.table[row, at + 1 : stops[-1] + 1][:, vector[able]]
            if stops[-1] == p.num_layers and not p.ends_at_source:
                ended = int(bounds[-1].argmin())
                self._complete(float(bounds[-1, ended]), k, first + int(able[ended]))
            for place in range(len(stops) - (stops[-1] == p.num_layers)):
                good = np.flatnonzero(bounds[place] < self._worth)
                if not len(good):
                    continue
                parent = able[good]
                left = labels.left[parent]
                left[:, row] -= 1
                cost = base[parent] + p.cost_before[k, stops[place]]
                self._wait(
                    int(stops[place]), Labels(bounds[place, good], cost, np.full(len(good), k), left, first + parent)
                )

    @cached_property
    def longest(self) -> Whole:
        """[K, N]: the most layers one device can hold of those from a boundary on."""
        space, p = self.space, self.space.problem
        lengths = space.reach - np.arange(p.num_layers)
        longest: Whole = np.maximum.accumulate(lengths[:, ::-1], axis=1)[:, ::-1]
        return longest

    def _wait(self, stop: int, labels: Labels) -> None:
        """Let labels wait at a boundary, but for those whose devices left cannot hold the layers left."""
        p = self.space.problem
        needed = p.num_layers - stop
        if p.ends_at_source:
            needed -= min(needed, p.num_layers - self.space.last_start)
        room = labels.left @ self.longest[list(self.space.middle), stop]
        labels = labels.chosen(np.flatnonzero(room >= needed))
        waiting = self.waiting.setdefault(stop, [])
        waiting.append(labels)
        if sum(len(some.bound) for some in waiting) > 8 * self.width:
            kept = self._kept(waiting)
            waiting[:] = [] if kept is None else [kept]

    def _complete(self, total: float, last: int, parent: int) -> None:
        if total >= self._worth:
            return
        places, stop = [(last, self.space.problem.num_layers)], parent
        while stop >= 0:
            k, boundary, stop = self.numbered[stop]
            places.append((k, boundary))
        starts = [0, *(boundary for _, boundary in reversed(places))]
        self.way = tuple(Segment(k, start, stop) for (k, stop), start in zip(reversed(places), starts, strict=False))
        self.best = total
