"""EdgeShard's two algorithms (arXiv 2405.14371) as printed, and the readings in which they were probably meant.

Kept to be compared with: `latency` and `throughput` solve the same problems exactly. What is wrong is named E1 to E6
here, and each has a test. Both work on single devices, so a problem with classes is expanded first. A time per segment
(`stage_cost`) is not in the paper; it is charged where a segment begins, and the memory of a segment beside its layers
(`stage_bytes`) is taken off the budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.problem import Costs, Problem, Segment, Sizes

Algorithm1Reading = Literal["printed", "once-per-cell", "along-the-path"]
"""Who pays in line 13, "Update memory Mem_j". printed: device j, out of one budget for all, whenever cell (i, j)
improves (E1). once-per-cell: the same once for each cell. along-the-path: every cell remembers what its own best path
has used, and an exact fit is one (E3); always fits, not always the optimum (E2)."""

Algorithm2Reading = Literal["printed", "compared", "repaired"]
"""printed: E3 to E6. compared: line 15 asks whether g(m, S', j) gets better (E5), layers are counted once (E6) and an
exact fit is one (E3), but the source still holds layer 0 alone (E4). repaired: E4 too; the least bottleneck."""


@dataclass(frozen=True, slots=True)
class PublishedPlan:
    """What an algorithm returns and what it believes it costs."""

    segments: tuple[Segment, ...]
    """By device of the expanded problem. Algorithm 1 may come back to a device, which no pipeline allows."""
    claimed_cost: float
    """Algorithm 1: time of one token. Algorithm 2: the longest stage or link time."""


def expanded(problem: Problem) -> tuple[Problem, tuple[int, ...]]:
    """The same problem with each device a class of its own, the source first, and the class of each device."""
    others = (k for k in range(problem.num_classes) if k != problem.source)
    owner = (problem.source, *(k for k in others for _ in range(problem.counts[k])))
    rows = np.array(owner)
    pairs = np.ix_(rows, rows)
    return (
        replace(
            problem,
            counts=(1,) * len(owner),
            source=0,
            unit_cost=problem.unit_cost[rows],
            stage_cost=problem.stage_cost[rows],
            hop_cost=problem.hop_cost[pairs],
            hop_cost_per_byte=problem.hop_cost_per_byte[pairs],
            return_cost=problem.return_cost[rows],
            unit_bytes=problem.unit_bytes[rows],
            stage_bytes=problem.stage_bytes[rows],
            memory_bytes=problem.memory_bytes[rows],
        ),
        owner,
    )


def total_cost(problem: Problem, segments: Sequence[Segment]) -> float:
    """Time of one token by device, whether or not memory and distinctness are respected."""
    cost = sum(problem.segment_cost(segment) for segment in segments)
    for a, b in pairwise(segments):
        cost += _hop_cost(problem, a.device_class, b.device_class, b.start)
    return cost + float(problem.return_cost[segments[-1].device_class])


def bottleneck_cost(problem: Problem, segments: Sequence[Segment]) -> float:
    """The longest stage or link time, the max of equation 9."""
    hops = (problem.transfer_cost(a.device_class, b.device_class, b.start) for a, b in pairwise(segments))
    return max(*(problem.segment_cost(segment) for segment in segments), *hops, 0.0)


def algorithm_1(problem: Problem, reading: Algorithm1Reading = "printed") -> PublishedPlan | None:
    """Algorithm 1, the least latency: DP(i, j) is the best time of layers 0 to i with layer i on device j.

    Needs an expanded problem. None is its "no plan": with the printed line 13 always, where all devices are linked and
    none can hold the layers 1 to N - 1, for every layer charges every device (E1).
    """
    devices, layers = problem.num_classes, problem.num_layers
    exact_fit = reading == "along-the-path"
    others = np.arange(devices)
    # Line 1: DP(i, j) = INF, choice(i, j) = NULL.
    best = np.full((layers, devices), math.inf)
    choice = np.full((layers, devices), -1)
    budget: Sizes = problem.memory_bytes - problem.stage_bytes
    left = np.tile(budget, (layers, devices, 1))
    # Line 2: layer 0 is on device 0. That this takes memory is not printed, and meant.
    if budget[0] < problem.unit_bytes[0, 0]:
        return None
    best[0, 0] = problem.stage_cost[0] + problem.unit_cost[0, 0]
    budget[0] -= problem.unit_bytes[0, 0]
    left[0, 0, 0] -= problem.unit_bytes[0, 0]
    for i in range(1, layers):  # Line 3.
        for j in range(devices):  # Line 4.
            need = problem.unit_bytes[j, i]
            if reading != "along-the-path" and budget[j] <= need:  # Lines 5 and 6; an exact fit is refused, E3.
                continue
            # Line 8, all k at once. Lines 9 and 10: equation 7, and at the last layer the way back.
            totals = best[i - 1] + problem.unit_cost[j, i] + _hop_costs(problem, j, i)
            totals[others != j] += problem.stage_cost[j]
            if i == layers - 1:
                totals += problem.return_cost[j]
            if exact_fit:
                totals[left[i - 1, :, j] < need] = math.inf
            # Lines 11 and 12: every k that is better than all before it is accepted, the last of them remains.
            before = np.minimum.accumulate(np.append(math.inf, totals))
            accepted = np.flatnonzero(totals < before[:-1])
            if accepted.size:
                best[i, j], choice[i, j] = before[-1], accepted[-1]
                left[i, j] = left[i - 1, accepted[-1]]
            if reading == "printed":  # Line 13: the one budget of j pays each time, whoever uses the cell, E1.
                budget[j] -= need * accepted.size
            left[i, j, j] -= need
            if reading == "once-per-cell" and choice[i, j] >= 0:
                budget[j] -= need
    # Lines 14 and on: the best last cell, and back along the choices.
    last = int(best[layers - 1].argmin())
    if not math.isfinite(best[layers - 1, last]):
        return None
    return PublishedPlan(tuple(_runs(_path(choice, last))), float(best[layers - 1, last]))


def algorithm_2(problem: Problem, reading: Algorithm2Reading = "printed") -> PublishedPlan | None:
    """Algorithm 2, the least bottleneck: g(i, S, k) over layers placed, devices used and the last of them.

    Needs an expanded problem of few devices: there are 2^M sets. As printed, i → m counts the layers i to m inclusive,
    although m is where the next stage begins, and the end is g(N - 1, ·): a layer at a boundary counts twice (E6). The
    segments returned hold it once, on the later device. None is its "no plan".
    """
    layers = problem.num_layers
    printed = reading == "printed"
    end = layers - 1 if printed else layers
    # Line 1 and 2: g = INF but for layer 0 on device 0. E4: nothing lets device 0 hold more.
    tables: list[dict[tuple[int, int], _Cell]] = [{} for _ in range(layers + 1)]
    for held in range(1, layers + 1 if reading == "repaired" else 2):
        first = Segment(0, 0, held)
        if problem.segment_bytes(first) <= problem.memory_bytes[0]:
            tables[held][1, 0] = _Cell(problem.segment_cost(first), None)
    for i in range(1, end):  # Line 3.
        for (used, k), cell in sorted(tables[i].items()):  # Lines 4 and 5: sets S with device k last.
            for m in range(i + 1, end + 1):  # Line 6.
                stop = m + 1 if printed else m
                for j in _absent(used, problem.num_classes):  # Line 7.
                    stage = Segment(j, i, stop)
                    need, room = problem.segment_bytes(stage), problem.memory_bytes[j]
                    if need > room or (printed and need == room):  # Lines 8 and 9; E3 again.
                        continue
                    # Lines 10 to 14, equation 11.
                    slowest = max(cell.bottleneck, problem.transfer_cost(k, j, i), problem.segment_cost(stage))
                    state = used | 1 << j, j
                    known = tables[m].get(state)
                    # Line 15: T_max is held against g(i, S, k), which it never undercuts, and overwrites (E5).
                    accepted = slowest <= cell.bottleneck if printed else known is None or slowest < known.bottleneck
                    if accepted and math.isfinite(slowest):
                        tables[m][state] = _Cell(slowest, (i, used, k))
    return _best_end(tables, end, layers)


def algorithm_2_steps(layers: int, devices: int) -> int:
    """N² 2^M M², the paper's complexity of Algorithm 2: 7.6e9 for 32 layers and 15 devices (E12)."""
    return int(layers**2 * 2**devices * devices**2)


@dataclass(frozen=True, slots=True)
class _Cell:
    bottleneck: float
    previous: tuple[int, int, int] | None
    """Layers placed, devices used, last device before; None where the source's segment is the first."""


def _best_end(tables: list[dict[tuple[int, int], _Cell]], end: int, layers: int) -> PublishedPlan | None:
    """The best final state, and back along the choices."""
    ends = tables[end]
    if not ends:
        return None
    used, last = min(ends, key=lambda state: (ends[state].bottleneck, state))
    claimed = ends[used, last].bottleneck
    segments: list[Segment] = []
    stop, here = layers, (end, used, last)
    while True:
        placed, used, device = here
        previous = tables[placed][used, device].previous
        start = previous[0] if previous else 0
        segments.append(Segment(device, start, stop))
        if previous is None:
            return PublishedPlan(tuple(segments[::-1]), claimed)
        stop, here = start, previous


def _hop_costs(problem: Problem, stop: int, boundary: int) -> Costs:
    """[M] from each device to `stop` before layer `boundary`."""
    costs: Costs = problem.hop_cost[:, stop] + problem.boundary_bytes[boundary - 1] * problem.hop_cost_per_byte[:, stop]
    costs[stop] = 0.0
    return costs


def _hop_cost(problem: Problem, start: int, stop: int, boundary: int) -> float:
    """From device `start` to `stop` before layer `boundary` (equation 2); 0 for staying."""
    if start == stop:
        return 0.0
    return float(problem.hop_cost[start, stop]) + problem.transfer_cost(start, stop, boundary)


def _absent(used: int, devices: int) -> Iterator[int]:
    return (j for j in range(devices) if not used >> j & 1)


def _path(choice: NDArray[np.int64], last: int) -> list[int]:
    """A device per layer, from choice(i, j), the device of layer i - 1."""
    path = [last]
    for i in range(len(choice) - 1, 0, -1):
        path.append(int(choice[i, path[-1]]))
    return path[::-1]


def _runs(path: Sequence[int]) -> Iterator[Segment]:
    """Segments of a device per layer."""
    start = 0
    for layer in range(1, len(path) + 1):
        if layer == len(path) or path[layer] != path[start]:
            yield Segment(path[start], start, layer)
            start = layer
