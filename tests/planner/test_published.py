"""EdgeShard's algorithms as printed, against every placement there is: each published error E1 to E6 by its number."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from planner.exhaustive import cheapest_by_enumeration
from planner.latency import cheapest_route
from planner.problem import Problem, Segment
from planner.published import (
    Algorithm1Reading,
    PublishedPlan,
    algorithm_1,
    algorithm_2,
    algorithm_2_steps,
    bottleneck_cost,
    expanded,
    total_cost,
)
from planner.throughput import fastest_pipeline
from tests.fakes.random_pipelines import placements
from tests.fakes.random_problems import random_problem

INSTANCES = 200


def problem_of(
    unit_cost: Sequence[Sequence[float]],
    memory: Sequence[int],
    *,
    hop: float = 1.0,
    unit_bytes: Sequence[int] | None = None,
) -> Problem:
    """Single devices, all linked alike, each layer one byte unless said."""
    cost = np.array(unit_cost, dtype=np.float64)
    devices, layers = cost.shape
    return Problem(
        counts=(1,) * devices,
        source=0,
        unit_cost=cost,
        stage_cost=np.zeros(devices),
        hop_cost=np.zeros((devices, devices)),
        hop_cost_per_byte=np.full((devices, devices), hop),
        boundary_bytes=np.ones(layers),
        return_cost=np.zeros(devices),
        unit_bytes=np.tile(np.array(unit_bytes or [1] * layers), (devices, 1)),
        stage_bytes=np.zeros(devices, dtype=np.int64),
        memory_bytes=np.array(memory),
    )


def linked_problem(seed: int, *, devices: int = 4, layers: int = 8, alike: bool = False) -> Problem:
    """Devices that all differ, all linked; the source holds a few layers, nobody necessarily all. alike: in bytes."""
    rng = np.random.default_rng(seed)
    problem = problem_of(
        rng.uniform(1, 10, (devices, layers)).tolist(),
        rng.integers(15, 50, devices).tolist(),
        unit_bytes=[10] * layers if alike else rng.integers(5, 15, layers).tolist(),
    )
    per_byte = rng.uniform(0.2, 3, (devices, devices))
    return replace(problem, hop_cost_per_byte=per_byte, boundary_bytes=rng.uniform(1, 3, layers))


def someone_holds_the_rest(problem: Problem) -> bool:
    rest = problem.bytes_before[:, -1] - problem.bytes_before[:, 1]
    return bool((problem.stage_bytes + rest <= problem.memory_bytes).any())


def least_bottleneck(problem: Problem) -> float:
    allowed = (each.segments for each in placements(problem) if problem.allows(each.segments))
    return min((bottleneck_cost(problem, segments) for segments in allowed), default=math.inf)


def our_bottleneck(problem: Problem) -> float:
    """By the exact planner: with a million micro-batches nothing but the bottleneck counts."""
    found = fastest_pipeline(lambda rows, sessions: problem, sessions=1, fixed=(10**6, 1))
    return math.inf if found is None else bottleneck_cost(problem, found.segments)


def sizes(plan: PublishedPlan | None) -> list[tuple[int, int, int]]:
    assert plan is not None
    return [(segment.device_class, segment.start, segment.stop) for segment in plan.segments]


def test_e1_one_budget_for_all_cells_leaves_no_plan_where_no_device_holds_the_model() -> None:
    drawn = (linked_problem(seed, alike=True) for seed in range(400))
    feasible = [problem for problem in drawn if not someone_holds_the_rest(problem) and cheapest_route(problem)]
    assert len(feasible) >= INSTANCES
    for problem in feasible[:INSTANCES]:
        assert algorithm_1(problem) is None
        # Charging once per cell does not help: every cell is charged, on the best path or not.
        assert algorithm_1(problem, "once-per-cell") is None
    for problem in feasible[:10]:
        ours, best = cheapest_route(problem), cheapest_by_enumeration(problem)
        assert ours is not None
        assert best is not None
        assert ours.cost == pytest.approx(best.cost, rel=1e-12)


def test_e1_layers_that_nobody_keeps_are_charged() -> None:
    """Two devices hold four layers each, and the printed algorithm cannot place six on them."""
    problem = problem_of([[1] * 6, [1] * 6], [4, 4])
    ours = cheapest_route(problem)
    assert ours is not None
    assert ours.cost == 7
    assert algorithm_1(problem) is None
    # With memory for everything it is a shortest path, and right.
    roomy = algorithm_1(replace(problem, memory_bytes=np.array([30, 30])))
    assert sizes(roomy) == [(0, 0, 6)]
    assert roomy is not None
    assert roomy.claimed_cost == 6


def best_assignment(problem: Problem) -> float:
    """The least time over all devices per layer, coming back allowed: what the repaired Algorithm 1 searches."""
    best = math.inf
    for rest in itertools.product(range(problem.num_classes), repeat=problem.num_layers - 1):
        path = (0, *rest)
        used = Counter[int]()
        for layer, device in enumerate(path):
            used[device] += int(problem.unit_bytes[device, layer])
        if all(used[device] <= problem.memory_bytes[device] for device in used):
            starts = [i for i in range(len(path)) if i == 0 or path[i] != path[i - 1]]
            stops = [*starts[1:], len(path)]
            pieces = [Segment(path[a], a, b) for a, b in zip(starts, stops, strict=True)]
            best = min(best, total_cost(problem, pieces))
    return best


def test_e2_memory_along_the_path_fits_and_is_not_the_optimum() -> None:
    worse = feasible = 0
    for seed in range(100):
        problem = linked_problem(seed, devices=3, layers=6)
        best, found = best_assignment(problem), algorithm_1(problem, "along-the-path")
        feasible += math.isfinite(best)
        if found is None:
            continue
        used = Counter[int]()
        for segment in found.segments:
            used[segment.device_class] += problem.segment_bytes(segment)
        assert all(used[device] <= problem.memory_bytes[device] for device in used)
        assert found.claimed_cost == pytest.approx(total_cost(problem, found.segments))
        assert found.claimed_cost >= best * (1 - 1e-12)
        worse += found.claimed_cost > best * (1 + 1e-9)
    assert worse >= feasible // 4 >= 20


@pytest.mark.parametrize("reading", ["printed", "once-per-cell"])
def test_e3_an_exact_fit_is_refused_by_algorithm_1(reading: Algorithm1Reading) -> None:
    problem = problem_of([[1, 1], [1, 1]], [1, 1])
    ours = cheapest_route(problem)
    assert ours is not None
    assert ours.segments == (Segment(0, 0, 1), Segment(1, 1, 2))
    assert algorithm_1(problem, reading) is None
    assert sizes(algorithm_1(problem, "along-the-path")) == [(0, 0, 1), (1, 1, 2)]


def test_e3_an_exact_fit_is_refused_by_algorithm_2() -> None:
    problem = problem_of([[5, 9, 9], [9, 1, 1]], [1, 2])
    assert algorithm_2(problem) is None
    assert sizes(algorithm_2(replace(problem, memory_bytes=np.array([1, 3])))) == [(0, 0, 1), (1, 1, 3)]
    assert sizes(algorithm_2(problem, "compared")) == [(0, 0, 1), (1, 1, 3)]


def test_e4_the_source_never_holds_more_than_layer_0() -> None:
    """Edge-Solo is the best by far, and is not in the search space."""
    problem = problem_of([[1] * 4, [9] * 4], [9, 9], hop=20)
    printed, compared = algorithm_2(problem), algorithm_2(problem, "compared")
    assert printed is None
    assert compared is not None
    assert compared.segments[0].stop == 1
    assert compared.claimed_cost == 27
    assert sizes(algorithm_2(problem, "repaired")) == [(0, 0, 4)]
    assert our_bottleneck(problem) == least_bottleneck(problem) == 4


def test_e4_statistics() -> None:
    worse = feasible = 0
    for seed in range(60):
        problem = linked_problem(seed, layers=6)
        best, found = least_bottleneck(problem), algorithm_2(problem, "compared")
        repaired = algorithm_2(problem, "repaired")
        assert (repaired.claimed_cost if repaired else math.inf) == pytest.approx(best)
        assert our_bottleneck(problem) == pytest.approx(best)
        if found is not None:
            assert all(segment.device_class != 0 for segment in found.segments[1:])
            assert found.segments[0] == Segment(0, 0, 1)
            assert found.claimed_cost >= best * (1 - 1e-12)
        feasible += math.isfinite(best)
        worse += math.isfinite(best) and (found is None or found.claimed_cost > best * (1 + 1e-9))
    assert feasible >= 40
    assert worse >= 10


def test_e5_a_bottleneck_that_must_rise_is_never_accepted() -> None:
    """Layer 0 takes 1, every other layer longer: line 15 compares with 1 and nothing is ever better."""
    problem = problem_of([[1, 2, 2, 2, 2], [9, 2, 2, 2, 2], [9, 3, 3, 3, 3]], [1, 3, 3])
    assert algorithm_2(problem) is None
    found = algorithm_2(problem, "compared")
    assert found is not None
    assert found.claimed_cost == 6 == our_bottleneck(problem) == least_bottleneck(problem)


def test_e5_e6_as_printed_a_plan_is_an_exception() -> None:
    found = [algorithm_2(linked_problem(seed, layers=6)) for seed in range(60)]
    assert sum(plan is None for plan in found) >= 50


def test_e6_the_last_layer_is_dropped() -> None:
    """Two layers: the end g(N - 1, ·) is reached when the first is placed, whatever the second would cost or need."""
    problem = problem_of([[1, 50], [50, 1]], [1, 1])
    printed = algorithm_2(problem)
    assert printed is not None
    assert sizes(printed) == [(0, 0, 2)]
    assert printed.claimed_cost == 1 < bottleneck_cost(problem, printed.segments) == 51
    assert not problem.allows(printed.segments)
    assert our_bottleneck(problem) == least_bottleneck(problem) == 1


def test_e6_a_layer_at_a_boundary_counts_twice() -> None:
    """Two devices have room for the four layers behind the source's, two each; counted twice they need a third."""
    problem = problem_of([[9] * 5, [1] * 5, [1] * 5], [1, 2, 2])
    spared = replace(problem, memory_bytes=problem.memory_bytes * 10 + 5, unit_bytes=problem.unit_bytes * 10)
    assert algorithm_2(spared) is None
    assert [piece[1:] for piece in sizes(algorithm_2(spared, "compared"))] == [(0, 1), (1, 3), (3, 5)]
    assert our_bottleneck(spared) == 9
    # With one more layer of room it finds the plan, which it believes to take a layer more than it does.
    costly = problem_of([[9] * 5, [3] * 5, [3] * 5], [1, 4, 4])
    printed = algorithm_2(costly)
    assert printed is not None
    assert printed.claimed_cost == 9
    assert max(costly.segment_cost(segment) for segment in printed.segments[1:]) == 6


def test_e12_its_states_cannot_be_visited() -> None:
    steps = [algorithm_2_steps(layers, 15) for layers in (32, 40, 80)]
    assert [round(count / 1e9, 1) for count in steps] == [7.5, 11.8, 47.2]


def test_repaired_algorithm_2_is_the_optimum() -> None:
    for seed in range(60):
        problem, _ = expanded(random_problem(seed, max_layers=6, max_devices=4, ends_at_source=False))
        repaired = algorithm_2(problem, "repaired")
        assert (repaired.claimed_cost if repaired else math.inf) == pytest.approx(least_bottleneck(problem))
        if repaired is not None:
            assert problem.allows(repaired.segments)
            assert repaired.claimed_cost == pytest.approx(bottleneck_cost(problem, repaired.segments))


@pytest.mark.parametrize("reading", ["printed", "once-per-cell", "along-the-path"])
def test_algorithm_1_claims_what_its_plan_costs(reading: Algorithm1Reading) -> None:
    """Segments, hops and the way back are all charged, whatever else is wrong."""
    claims = 0
    for seed in range(120):
        problem, _ = expanded(random_problem(seed, ends_at_source=False))
        found = algorithm_1(problem, reading)
        if found is not None:
            claims += 1
            assert found.claimed_cost == pytest.approx(total_cost(problem, found.segments))
            distinct = len({segment.device_class for segment in found.segments}) == len(found.segments)
            assert not distinct or found.claimed_cost == pytest.approx(problem.cost_of(found.segments))
    assert claims >= 40


def test_expanded_keeps_costs_and_puts_the_source_first() -> None:
    for seed in range(20):
        problem = random_problem(seed, all_different=False, ends_at_source=False)
        devices, owner = expanded(problem)
        assert devices.counts == (1,) * sum(problem.counts)
        assert owner[0] == problem.source
        assert Counter(owner) == dict(enumerate(problem.counts))
        best = cheapest_by_enumeration(devices)
        of_classes = cheapest_by_enumeration(problem)
        assert (best is None) == (of_classes is None)
        if best is not None and of_classes is not None:
            assert best.cost == pytest.approx(of_classes.cost)
            as_classes = tuple(replace(piece, device_class=owner[piece.device_class]) for piece in best.segments)
            assert problem.cost_of(as_classes) == pytest.approx(total_cost(devices, best.segments))


def test_a_single_layer() -> None:
    problem = problem_of([[3], [1]], [2, 2])
    assert sizes(algorithm_1(problem)) == [(0, 0, 1)]
    assert sizes(algorithm_2(problem, "repaired")) == [(0, 0, 1)]
    none = replace(problem, memory_bytes=np.array([0, 2]))
    assert algorithm_1(none) is None
    assert algorithm_2(none, "repaired") is None
