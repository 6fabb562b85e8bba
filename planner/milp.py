"""The same placement as an integer programme, solved by HiGHS: the second opinion behind `plan --verify`.

Variables: y[k, i, j] is 1 when a device of class k holds layers [i, j), z[a, b, e] when the way hops from class a to
class b at boundary e. Boundaries only increase, so no closed tours need to be cut off, and interchangeable devices
need no names: a class may appear as often as it has devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from planner.problem import Ceiling, Problem, Segment, Solution
from planner.route_search import CEILING_SLACK

OBJECTIVE_SIZE = 1e4
"""Costs are scaled to about this: HiGHS stops at an absolute gap of 1e-6."""
INFEASIBLE = 2
"""scipy's status of a programme without a solution."""


@dataclass(frozen=True)
class Rows:
    """Linear constraints `low <= sum of coefficient * variable <= high`, as triplets."""

    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    coefficient: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        for column, coefficient in terms:
            self.row.append(len(self.low))
            self.column.append(column)
            self.coefficient.append(coefficient)
        self.low.append(low)
        self.high.append(high)


def cheapest_by_milp(
    problem: Problem, ceiling: Ceiling | None = None, *, time_limit_s: float | None = None
) -> Solution | None:
    """The cheapest placement, None if nothing fits; of equal ones any. "bounded" if the time limit stopped the proof.

    Raises TimeoutError if the limit came before any placement.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    pieces, hops = _pieces(problem, ceiling), _hops(problem, ceiling)
    if not pieces:
        return None
    columns = len(pieces) + len(hops)
    costs = np.array([problem.segment_cost(piece) for piece in pieces])
    costs += [problem.return_cost[piece.device_class] * (piece.stop == problem.num_layers) for piece in pieces]
    hop_costs = [float(problem.hop_cost[a, b]) + problem.transfer_cost(a, b, boundary) for a, b, boundary in hops]
    objective = np.concatenate([costs, hop_costs])
    scale = OBJECTIVE_SIZE / (float(problem.unit_cost.min(axis=0).sum()) or 1.0)
    rows = _rows(problem, ceiling, pieces, hops)
    matrix = csr_array((rows.coefficient, (rows.row, rows.column)), shape=(len(rows.low), columns))
    options: dict[str, float] = {"mip_rel_gap": 0.0}
    if time_limit_s is not None:
        options["time_limit"] = time_limit_s
    result = milp(
        objective * scale,
        integrality=np.ones(columns),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, rows.low, rows.high),
        options=options,
    )
    if result.status == INFEASIBLE:
        return None
    if result.x is None:
        raise TimeoutError(f"HiGHS found no placement within {time_limit_s} s: {result.message}")
    chosen = sorted((piece for piece, on in zip(pieces, result.x, strict=False) if on > 0.5), key=lambda s: s.start)
    cost = problem.cost_of(chosen)
    bound = cost if result.success else min(cost, float(result.mip_dual_bound) / scale)
    return Solution(tuple(chosen), cost, bound, "exact" if result.success else "bounded")


def _pieces(problem: Problem, ceiling: Ceiling | None) -> list[Segment]:
    """Every segment that may be part of a placement."""
    layers, source, both = problem.num_layers, problem.source, problem.ends_at_source
    found = []
    for k in range(problem.num_classes):
        for start in range(layers):
            first = start == 0
            for stop in range(start + 1, layers + 1):
                if (first and k != source) or (k == source and not first and not (both and stop == layers)):
                    continue
                if both and k != source and stop == layers:
                    continue
                piece = Segment(k, start, stop)
                slow = ceiling is not None and problem.segment_cost(piece) > ceiling.stage_cost[k] * (1 + CEILING_SLACK)
                if problem.segment_bytes(piece) <= problem.memory_bytes[k] and not slow:
                    found.append(piece)
    return found


def _hops(problem: Problem, ceiling: Ceiling | None) -> list[tuple[int, int, int]]:
    """Every hop (class, class, boundary) over a link that exists and is fast enough."""
    classes = range(problem.num_classes)
    linked = [(a, b) for a in classes for b in classes if np.isfinite(problem.hop_cost_per_byte[a, b])]
    boundaries = range(1, problem.num_layers)
    hops = [(a, b, boundary) for a, b in linked for boundary in boundaries]
    if ceiling is None:
        return hops
    highest = ceiling.transfer_cost * (1 + CEILING_SLACK)
    return [hop for hop in hops if problem.transfer_cost(*hop) <= highest]


def _rows(problem: Problem, ceiling: Ceiling | None, pieces: list[Segment], hops: list[tuple[int, int, int]]) -> Rows:
    layers, source = problem.num_layers, problem.source
    starting: dict[tuple[int, int], list[tuple[int, float]]] = {}
    ending: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for column, piece in enumerate(pieces):
        starting.setdefault((piece.device_class, piece.start), []).append((column, 1.0))
        ending.setdefault((piece.device_class, piece.stop), []).append((column, 1.0))
    for column, (a, b, boundary) in enumerate(hops, start=len(pieces)):
        ending.setdefault((a, boundary), []).append((column, -1.0))
        starting.setdefault((b, boundary), []).append((column, -1.0))
    rows = Rows()
    rows.add(starting.get((source, 0), []), 1, 1)
    rows.add([term for k in range(problem.num_classes) for term in ending.get((k, layers), [])], 1, 1)
    for k in range(problem.num_classes):
        for boundary in range(1, layers):
            rows.add(ending.get((k, boundary), []), 0, 0)
            rows.add(starting.get((k, boundary), []), 0, 0)
        mine = [column for column, piece in enumerate(pieces) if piece.device_class == k]
        both = k == source and problem.ends_at_source
        rows.add([(column, 1.0) for column in mine], 0, 2 if both else problem.counts[k])
    if problem.ends_at_source:
        own = [(column, piece) for column, piece in enumerate(pieces) if piece.device_class == source]
        room = int(problem.memory_bytes[source] - problem.stage_bytes[source])
        layer_bytes = [float(problem.segment_bytes(piece) - problem.stage_bytes[source]) for _, piece in own]
        unit = max(1.0, float(room))
        held = [(column, size / unit) for (column, _), size in zip(own, layer_bytes, strict=True)]
        rows.add(held, 0, room / unit)
        if ceiling is not None:
            highest = float(ceiling.stage_cost[source]) * (1 + CEILING_SLACK)
            rows.add([(column, problem.segment_cost(piece) / highest) for column, piece in own], 0, 1)
    return rows
