"""Least energy against trying everything, with idle powers that differ and devices that are not worth switching on."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from planner.energy import ProblemAtIdle, least_energy
from planner.problem import Costs, Problem, Segment
from tests.fakes.random_pipelines import placements
from tests.fakes.random_problems import cluster_problem, random_problem

INSTANCES = 2000 if os.environ.get("EDGE_ORACLE") else 300


def powered(times: Problem, active_w: Costs, idle_w: Costs) -> ProblemAtIdle:
    """Costs in s become J: everything's time at the idle power of all used, own time at what a device draws more."""
    extra_w = active_w - idle_w

    def at(total_idle_w: float) -> Problem:
        own_w = extra_w + total_idle_w
        return replace(
            times,
            unit_cost=times.unit_cost * own_w[:, None],
            stage_cost=times.stage_cost * own_w,
            hop_cost=times.hop_cost * total_idle_w,
            hop_cost_per_byte=np.where(
                np.isinf(times.hop_cost_per_byte),
                np.inf,
                np.nan_to_num(times.hop_cost_per_byte, posinf=0.0) * total_idle_w,
            ),
            return_cost=times.return_cost * total_idle_w,
        )

    return at


def joules(times: Problem, segments: tuple[Segment, ...], active_w: Costs, idle_w: Costs) -> float:
    """By its meaning, device by device."""
    used = Counter(segment.device_class for segment in segments)
    used[times.source] = 1
    total = times.cost_of(segments) * sum(count * idle_w[k] for k, count in used.items())
    for segment in segments:
        k = segment.device_class
        total += (active_w[k] - idle_w[k]) * times.segment_cost(segment)
    return float(total)


def test_no_placement_takes_less_energy():
    differences, branched = [], 0
    for seed in range(INSTANCES):
        times = random_problem(seed, max_layers=8, max_devices=5)
        rng = np.random.default_rng([seed, 3])
        idle_w = rng.choice([0.0, 1.0, 5.0, 20.0], times.num_classes) * rng.uniform(0.5, 1, times.num_classes)
        active_w = idle_w + rng.uniform(0, 30, times.num_classes)
        fitting = [each.segments for each in placements(times) if times.allows(each.segments)]
        oracle = min((joules(times, each, active_w, idle_w) for each in fitting), default=None)
        solution = least_energy(powered(times, active_w, idle_w), idle_w)
        if (solution is None) != (oracle is None):
            differences.append(seed)
        if solution is None or oracle is None:
            continue
        assert (solution.method, solution.gap) == ("exact", 0)
        assert solution.cost == pytest.approx(joules(times, solution.segments, active_w, idle_w))
        if solution.cost != pytest.approx(oracle, rel=1e-9):
            differences.append(seed)
        branched += solution.segments != min(fitting, key=times.cost_of)
    assert differences == []
    assert branched > 20, "least energy and least time should often disagree"


def test_how_many_of_a_class_is_chosen_too():
    """Classes of several devices, needed or not by what waiting costs; the search leaves its first box in most."""
    seen = Counter[int]()
    for seed in range(100, 100 + INSTANCES // 5):
        rng = np.random.default_rng([seed, 4])
        times = cluster_problem(seed, (1, 3, 2), layers=6, capacity=float(rng.uniform(2, 6)))
        times = replace(
            times,
            unit_cost=times.unit_cost * rng.uniform(0.5, 2, times.unit_cost.shape),
            hop_cost_per_byte=times.hop_cost_per_byte * rng.choice([0.05, 0.3, 1]),
        )
        idle_w = rng.uniform(0, 10, 3)
        active_w = idle_w + rng.uniform(0, 300, 3)
        tried = [each.segments for each in placements(times) if times.allows(each.segments)]
        solution = least_energy(powered(times, active_w, idle_w), idle_w)
        assert solution is not None
        assert solution.method == "exact"
        assert solution.cost == pytest.approx(min(joules(times, each, active_w, idle_w) for each in tried), rel=1e-9)
        seen[len(solution.segments)] += 1
    assert len(seen) > 3


def test_a_fast_device_that_idles_dearly_is_left_off():
    """Half the time at four times the power is not worth it; with cheap idling it is."""
    times = Problem(
        counts=(1, 1),
        source=0,
        unit_cost=np.array([[1.0] * 4, [0.1] * 4]),
        stage_cost=np.zeros(2),
        hop_cost=np.zeros((2, 2)),
        hop_cost_per_byte=np.zeros((2, 2)),
        boundary_bytes=np.ones(4),
        return_cost=np.zeros(2),
        unit_bytes=np.ones((2, 4), dtype=np.int64),
        stage_bytes=np.zeros(2, dtype=np.int64),
        memory_bytes=np.array([4, 4]),
    )
    for idle_w, stages in ((200.0, 1), (1.0, 2)):
        idle = np.array([5.0, idle_w])
        solution = least_energy(powered(times, idle + 10, idle), idle)
        assert solution is not None
        assert len(solution.segments) == stages


def test_without_idle_power_one_search_is_the_answer():
    times = random_problem(4)
    zero = np.zeros(times.num_classes)
    assert least_energy(powered(times, zero + 7, zero), zero, max_boxes=1) == least_energy(
        powered(times, zero + 7, zero), zero
    )


def test_a_stopped_search_shows_what_it_left_open():
    times = cluster_problem(5, (1, 1, 1, 1, 1), layers=12, capacity=1.3)
    idle_w = np.array([3.0, 9.0, 4.0, 6.0, 5.0])
    at = powered(times, idle_w + np.array([5.0, 40.0, 2.0, 9.0, 30.0]), idle_w)
    whole, stopped = least_energy(at, idle_w), least_energy(at, idle_w, max_boxes=1)
    assert whole is not None
    assert stopped is not None
    assert whole.method == "exact"
    assert (stopped.method, stopped.gap > 0) == ("bounded", True)
    assert stopped.lower_bound <= whole.cost * (1 + 1e-12)
    assert whole.cost <= stopped.cost * (1 + 1e-12)
