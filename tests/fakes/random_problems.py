"""Small random placement problems in which everything differs: the oracles and the planners must agree on them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from planner.problem import Ceiling, Problem


def random_problem(
    seed: int,
    *,
    max_layers: int = 9,
    max_devices: int = 5,
    all_different: bool | None = None,
    ends_at_source: bool | None = None,
) -> Problem:
    """Up to `max_devices` devices in classes of one or more; memory often tight, links sometimes missing.

    About one in four has no placement at all. Every second problem has small whole numbers as costs, so that sums are
    exact and many placements cost the same. None: drawn as well.
    """
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, max_layers + 1))
    devices = int(rng.integers(1, max_devices + 1))
    whole = bool(rng.random() < 0.5)
    different = bool(rng.random() < 0.5) if all_different is None else all_different
    counts, source = _classes(rng, devices, different)
    classes = len(counts)

    def costs(low: float, high: float, *shape: int) -> np.ndarray:
        drawn = rng.uniform(low, high, shape)
        return np.floor(drawn) if whole else drawn

    speed = costs(1, 6, classes, 1)
    per_byte = costs(1, 4, classes, classes)
    per_byte[rng.random((classes, classes)) < rng.choice([0.0, 0.0, 0.2])] = math.inf
    return_cost = costs(0, 5, classes)
    return_cost[source] = 0
    unit_bytes = rng.integers(1, 6, (1, layers)) * np.ones((classes, 1), dtype=np.int64)
    unit_bytes += rng.integers(0, 2, (classes, 1))
    stage_bytes = rng.integers(0, 4, classes)
    need = int(unit_bytes.max(axis=0).sum())
    share = rng.uniform(1.0, 4.0) / devices
    memory = stage_bytes + np.maximum(1, (need * share * rng.uniform(0.3, 1.7, classes)).astype(np.int64))
    memory[source] = max(memory[source], stage_bytes[source] + rng.integers(0, 2 * unit_bytes[source, 0] + 1))
    return Problem(
        counts=counts,
        source=source,
        unit_cost=speed * costs(1, 4, classes, layers),
        stage_cost=costs(0, 3, classes),
        hop_cost=costs(0, 6, classes, classes),
        hop_cost_per_byte=per_byte,
        boundary_bytes=costs(1, 4, layers),
        return_cost=return_cost,
        unit_bytes=unit_bytes.astype(np.int64),
        stage_bytes=stage_bytes.astype(np.int64),
        memory_bytes=memory.astype(np.int64),
        ends_at_source=bool(rng.random() < 0.25) if ends_at_source is None else ends_at_source,
    )


def random_ceiling(seed: int, problem: Problem) -> Ceiling:
    """Somewhere between what binds hard and what hardly binds; often exactly the cost of some segment or transfer."""
    rng = np.random.default_rng([seed, 1])
    total = problem.unit_cost.sum(axis=1) + problem.stage_cost
    stage = float(rng.uniform(0.15, 1.0)) * float(total.mean())
    if rng.random() < 0.5:
        device, stop = int(rng.integers(problem.num_classes)), int(rng.integers(1, problem.num_layers + 1))
        stage = float(problem.stage_cost[device] + problem.cost_before[device, stop])
    transfer = math.inf if rng.random() < 0.3 else float(rng.uniform(2, 12))
    per_class = rng.random() < 0.3
    ceilings = np.full(problem.num_classes, stage) * (rng.uniform(0.5, 2, problem.num_classes) if per_class else 1.0)
    return Ceiling(ceilings, transfer)


def cluster_problem(
    seed: int, counts: tuple[int, ...], *, layers: int = 80, capacity: float = 1.5, link_spread: float = 0.0
) -> Problem:
    """A large cluster for timings: class 0 is the source; devices together hold `capacity` times the model.

    Identical layers but for the head; links of 50 Mbit/s, the source's to the last class 1 Mbit/s; every class pair's
    link is off by up to `link_spread`.
    """
    rng = np.random.default_rng(seed)
    classes = len(counts)
    speed = rng.uniform(0.5, 4, classes)
    unit_cost = speed[:, None] * np.ones(layers)
    unit_cost[:, -1] *= 1.2
    unit_bytes = np.full((classes, layers), 1000, dtype=np.int64)
    unit_bytes[:, -1] = 1300
    held = rng.uniform(0.6, 1.4, classes)
    held *= capacity * unit_bytes[0].sum() / float(held @ np.array(counts))
    memory = np.maximum(held, 2000).astype(np.int64)
    per_byte = np.full((classes, classes), 2.6 / 16384)
    per_byte[0, -1] = per_byte[-1, 0] = 131.0 / 16384
    spread = 1 + link_spread * rng.uniform(-1, 1, (classes, classes))
    return Problem(
        counts=counts,
        source=0,
        unit_cost=unit_cost,
        stage_cost=np.zeros(classes),
        hop_cost=np.full((classes, classes), 1.0) * spread,
        hop_cost_per_byte=per_byte * spread,
        boundary_bytes=np.full(layers, 16384.0),
        return_cost=np.where(np.arange(classes) == 0, 0.0, 1.0),
        unit_bytes=unit_bytes,
        stage_bytes=np.full(classes, 200, dtype=np.int64),
        memory_bytes=memory + 200,
    )


def one_per_device(problem: Problem) -> Problem:
    """The same problem with every device as a class of its own, which hides the symmetry."""
    of = np.repeat(np.arange(problem.num_classes), problem.counts)
    return replace(
        problem,
        counts=(1,) * len(of),
        source=int(np.flatnonzero(of == problem.source)[0]),
        unit_cost=problem.unit_cost[of],
        stage_cost=problem.stage_cost[of],
        hop_cost=problem.hop_cost[np.ix_(of, of)],
        hop_cost_per_byte=problem.hop_cost_per_byte[np.ix_(of, of)],
        return_cost=problem.return_cost[of],
        unit_bytes=problem.unit_bytes[of],
        stage_bytes=problem.stage_bytes[of],
        memory_bytes=problem.memory_bytes[of],
    )


def _classes(rng: np.random.Generator, devices: int, different: bool) -> tuple[tuple[int, ...], int]:
    """Counts that sum to `devices`, and which class is the source's, of one device."""
    others = [1] * (devices - 1)
    if not different and len(others) > 1:
        cuts = sorted(rng.choice(len(others), int(rng.integers(0, len(others))), replace=False).tolist())
        edges = [0, *(cut for cut in cuts if cut), len(others)]
        others = [stop - start for start, stop in pairwise(edges)]
    source = int(rng.integers(0, len(others) + 1))
    return (*others[:source], 1, *others[source:]), source
