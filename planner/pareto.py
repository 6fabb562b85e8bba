"""Latency against rate: the placements that no other beats in both, for one number of micro-batches and rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.bottleneck import SAME, Ring, shortest_period
from planner.problem import Segment


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    segments: tuple[Segment, ...]
    round_ms: float
    """A token of one micro-batch alone: L."""
    rate_tokens_per_s: float
    """With all micro-batches circulating, without bubbles."""


def frontier(ring: Ring, rows: int, *, points: int = 100) -> tuple[FrontierPoint, ...]:
    """From the least L to the highest rate, both rising; empty when nothing fits.

    Lowers the ceiling below the bottleneck of the last placement and takes the least L again, down to the shortest
    period: below it, both get worse. One latency search a point. Where `points` are too few for all, ceilings are
    spread evenly over the service times between: each point still is a trade that nothing improves on, but others lie
    between them. Raises ValueError for fewer than two points.
    """
    if points < 2:
        raise ValueError(f"a frontier has two ends, {points} points asked")
    services, fastest = ring.service_times(), shortest_period(ring)
    if fastest.segments is None:
        return ()
    last = int(np.searchsorted(services, fastest.period * (1 + SAME), side="right")) - 1
    found: list[FrontierPoint] = []
    service = math.inf
    for left in range(points - 1, -1, -1):
        solution = ring.cheapest_within(service)
        if solution is None:
            break
        rate = 1e3 * ring.copies * rows / ring.period(solution.segments)
        # Of equal L the higher rate stays; of equal rate the lesser L.
        if found and solution.cost <= found[-1].round_ms * (1 + SAME):
            found.pop()
        if not found or rate > found[-1].rate_tokens_per_s * (1 + SAME):
            found.append(FrontierPoint(solution.segments, solution.cost, rate))
        quicker = int(np.searchsorted(services, ring.bottleneck(solution.segments) * (1 - SAME)))
        if quicker <= last:
            break
        service = float(services[max(last, quicker - math.ceil((quicker - last) / max(left, 1)))])
    return tuple(found)
