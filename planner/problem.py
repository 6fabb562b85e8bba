"""The placement problem in numbers: device classes, additive costs, memory. What the exact planners solve.

`cost` makes a Problem from measurements, `latency`, `throughput` and `energy` solve it, `exhaustive` and `milp` check
them. Nothing here knows what a millisecond is: a cost is in the unit of the objective.

A *class* is a set of interchangeable devices: equal costs, equal memory, equal links to every class. Permuting the
devices of a class maps a placement to one of equal cost, so it matters only how many of each class are used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
Sizes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers `[start, stop)` on one device of a class."""

    device_class: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Longest service allowed to a server of the pipeline (papers: theta of the bottleneck search)."""

    stage_cost: Costs
    """[K], by class."""
    transfer_cost: float
    """Of a link: `boundary_bytes * hop_cost_per_byte`, without its latency."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Find segments that cover the layers once, on distinct devices, at the least total cost.

    K classes, N layers. The first segment is on the source. A placement costs

        sum over segments of stage_cost[k] + unit_cost[k, start:stop].sum()
        + sum over hops a → b after layer i of hop_cost[a, b] + boundary_bytes[i] * hop_cost_per_byte[a, b]
        + return_cost[class of the last segment]

    and a segment fits when stage_bytes[k] + unit_bytes[k, start:stop].sum() <= memory_bytes[k]. With `ends_at_source`
    the source also holds the last segment (it keeps tokens and head to itself): both its segments together must fit,
    with stage_bytes counted once, and the first may still be everything. Costs and sizes are from 0 up, memory may be
    negative for a class that is not to be used; raises ValueError for others, and for arrays that do not fit together.
    """

    counts: tuple[int, ...]
    """[K] devices per class; one for the source's."""
    source: int
    unit_cost: Costs
    """[K, N]; the embedding is part of layer 0, final norm and head of layer N - 1."""
    stage_cost: Costs
    """[K], per segment."""
    hop_cost: Costs
    """[K, K], fixed part."""
    hop_cost_per_byte: Costs
    """[K, K]; inf where there is no link. The diagonal is the link between two devices of one class."""
    boundary_bytes: Costs
    """[N], what leaves layer i; the last entry is not used."""
    return_cost: Costs
    """[K], from the last segment to the source: a token, never logits. 0 for the source."""
    unit_bytes: Sizes
    """[K, N]"""
    stage_bytes: Sizes
    """[K]"""
    memory_bytes: Sizes
    """[K]"""
    ends_at_source: bool = False

    def __post_init__(self) -> None:
        classes, layers = self.unit_cost.shape
        shapes = {
            "counts": (np.shape(self.counts), (classes,)),
            "stage_cost": (self.stage_cost.shape, (classes,)),
            "hop_cost": (self.hop_cost.shape, (classes, classes)),
            "hop_cost_per_byte": (self.hop_cost_per_byte.shape, (classes, classes)),
            "unit_cost": (self.unit_cost.shape, (classes, layers)),
            "boundary_bytes": (self.boundary_bytes.shape, (layers,)),
            "return_cost": (self.return_cost.shape, (classes,)),
            "unit_bytes": (self.unit_bytes.shape, (classes, layers)),
            "stage_bytes": (self.stage_bytes.shape, (classes,)),
            "memory_bytes": (self.memory_bytes.shape, (classes,)),
        }
        for name, (shape, expected) in shapes.items():
            if shape != expected:
                raise ValueError(f"{name} has shape {shape}, expected {expected}")
        for name in shapes.keys() - {"memory_bytes"}:
            # nan compares as false with everything: only what is known to be from 0 up passes.
            if not (np.asarray(getattr(self, name)) >= 0).all():
                raise ValueError(f"{name} must be numbers from 0")
        if not 0 <= self.source < classes or self.counts[self.source] != 1 or min(self.counts) < 1:
            raise ValueError(f"source {self.source} of {classes} classes with {self.counts} devices")

    @property
    def num_classes(self) -> int:
        return int(self.unit_cost.shape[0])

    @property
    def num_layers(self) -> int:
        return int(self.unit_cost.shape[1])

    @cached_property
    def cost_before(self) -> Costs:
        """[K, N + 1]: cost of the layers before a boundary, so a range costs a difference."""
        return np.pad(self.unit_cost.cumsum(axis=1), ((0, 0), (1, 0)))

    @cached_property
    def bytes_before(self) -> Sizes:
        """[K, N + 1]: memory of the layers before a boundary."""
        return np.pad(self.unit_bytes.cumsum(axis=1), ((0, 0), (1, 0)))

    def segment_cost(self, segment: Segment) -> float:
        before = self.cost_before[segment.device_class]
        return float(self.stage_cost[segment.device_class] + before[segment.stop] - before[segment.start])

    def segment_bytes(self, segment: Segment) -> int:
        before: Sizes = self.bytes_before[segment.device_class]
        return int(self.stage_bytes[segment.device_class] + before[segment.stop] - before[segment.start])

    def transfer_cost(self, start: int, stop: int, boundary: int) -> float:
        """Service time of the link from class `start` to class `stop` for what leaves layer `boundary - 1`."""
        return float(self.boundary_bytes[boundary - 1] * self.hop_cost_per_byte[start, stop])

    def cost_of(self, segments: Sequence[Segment]) -> float:
        """Total cost of a placement, term by term; inf when it breaks a rule."""
        if not self.allows(segments):
            return math.inf
        cost = sum(self.segment_cost(segment) for segment in segments)
        for a, b in pairwise(segments):
            hop = float(self.hop_cost[a.device_class, b.device_class])
            cost += hop + self.transfer_cost(a.device_class, b.device_class, b.start)
        return cost + float(self.return_cost[segments[-1].device_class])

    def allows(self, segments: Sequence[Segment]) -> bool:
        """Whether segments cover the layers in order, begin at the source, respect counts and memory."""
        edges = [0, *(segment.stop for segment in segments)]
        if [segment.start for segment in segments] != edges[:-1] or edges[-1] != self.num_layers:
            return False
        if segments[0].device_class != self.source or any(segment.stop <= segment.start for segment in segments):
            return False
        used = Counter(segment.device_class for segment in segments)
        own = [segment for segment in segments if segment.device_class == self.source]
        if self.ends_at_source:
            if segments[-1].device_class != self.source or len(own) > 2:
                return False
            used[self.source] = 1
        if any(count > self.counts[k] for k, count in used.items()):
            return False
        own_bytes = sum(self.segment_bytes(segment) for segment in own) - (len(own) - 1) * self.stage_bytes[self.source]
        others = (segment for segment in segments if segment.device_class != self.source)
        return bool(own_bytes <= self.memory_bytes[self.source]) and all(
            self.segment_bytes(segment) <= self.memory_bytes[segment.device_class] for segment in others
        )


@dataclass(frozen=True, slots=True)
class Solution:
    """A placement, what it costs, and what no placement can undercut."""

    segments: tuple[Segment, ...]
    cost: float
    lower_bound: float
    method: Literal["exact", "bounded"]
    """bounded: the search gave up proving; the gap is what is left open."""

    @property
    def gap(self) -> float:
        """Relative distance to the lower bound; 0 for a proven optimum."""
        return max(0.0, self.cost / self.lower_bound - 1) if self.lower_bound > 0 else 0.0
