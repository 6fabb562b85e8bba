"""Every placement there is, one after another: the oracle of the planners, for up to a dozen layers and six devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from planner.problem import Ceiling, Problem, Segment, Solution
from planner.route_search import CEILING_SLACK


def cheapest_by_enumeration(problem: Problem, ceiling: Ceiling | None = None) -> Solution | None:
    """The cheapest placement, None if nothing fits. Of equal costs the fewest segments, then the lexicographic first.

    Tries all cuts of the layers and all classes of each piece, and asks the problem itself what is allowed and what
    it costs.
    """
    best: tuple[float, int, tuple[Segment, ...]] | None = None
    for segments in _placements(problem):
        cost = problem.cost_of(segments)
        if math.isinf(cost) or (ceiling is not None and not _below(problem, ceiling, segments)):
            continue
        if best is None or _precedes((cost, len(segments), segments), best):
            best = (cost, len(segments), segments)
    return None if best is None else Solution(best[2], best[0], best[0], "exact")


def _placements(problem: Problem) -> Iterator[tuple[Segment, ...]]:
    """All sequences of segments that cover the layers and begin at the source; counts are left to the problem."""

    def extend(segments: tuple[Segment, ...], left: list[int]) -> Iterator[tuple[Segment, ...]]:
        start = segments[-1].stop if segments else 0
        if start == problem.num_layers:
            yield segments
            return
        for device_class in range(problem.num_classes) if segments else (problem.source,):
            if not left[device_class]:
                continue
            left[device_class] -= 1
            for stop in range(start + 1, problem.num_layers + 1):
                yield from extend((*segments, Segment(device_class, start, stop)), left)
            left[device_class] += 1

    counts = list(problem.counts)
    counts[problem.source] += problem.ends_at_source
    return extend((), counts)


def _below(problem: Problem, ceiling: Ceiling, segments: tuple[Segment, ...]) -> bool:
    """Whether every server and link keeps to its ceiling; both segments of the source are one server's."""
    source_cost = sum(problem.segment_cost(piece) for piece in segments if piece.device_class == problem.source)
    for segment in segments:
        own = segment.device_class == problem.source
        service = source_cost if own else problem.segment_cost(segment)
        if service > ceiling.stage_cost[segment.device_class] * (1 + CEILING_SLACK):
            return False
    return all(
        problem.transfer_cost(a.device_class, b.device_class, b.start) <= ceiling.transfer_cost * (1 + CEILING_SLACK)
        for a, b in pairwise(segments)
    )


def _precedes(a: tuple[float, int, tuple[Segment, ...]], b: tuple[float, int, tuple[Segment, ...]]) -> bool:
    if not math.isclose(a[0], b[0], rel_tol=1e-12):
        return a[0] < b[0]
    return (a[1], [_key(s) for s in a[2]]) < (b[1], [_key(s) for s in b[2]])


def _key(segment: Segment) -> tuple[int, int]:
    return segment.device_class, segment.stop
