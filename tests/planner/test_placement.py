"""place: objectives against enumeration, machines that are shared, copies."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from planner.cost import CostModel
from planner.exhaustive import cheapest_by_enumeration
from planner.pipeline import no_bubbles_rate
from planner.placement import (
    Goal,
    place,
    place_again,
    shares_hosts,
    tokens_per_s,
    unchanged,
    without_dead_ends,
)
from planner.prediction import best_batch
from planner.problem import Problem, Segment
from planner.profile import ClusterProfile
from planner.types import LayerRange, Route, Stage
from planner.workload import Workload
from tests.fakes.random_profiles import plain_device, plain_profile, random_profile, random_route, random_workload

WORKLOAD = Workload(quantization="fp32", sessions=4, prompt=1, tokens=64, context=128, counts_workspace=False)


def on_hosts(*hosts: str, layer_ms: float = 4.0) -> ClusterProfile:
    names = "abcdef"
    return plain_profile(
        *(plain_device(name, layer_ms=layer_ms, host=host or name) for name, host in zip(names, hosts, strict=False))
    )


def test_latency_equals_enumeration() -> None:
    fitting = 0
    for seed in range(60):
        rng = random.Random(seed)
        model = CostModel(random_profile(rng), random_workload(rng))
        found, expected = place(model, Goal()), cheapest_by_enumeration(model.latency_problem())
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            fitting += 1
            assert found.cost == pytest.approx(expected.cost, rel=1e-12)
            assert found.optimal
    assert fitting > 20


def test_a_rate_of_one_route_is_that_of_its_pipeline() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        profile = random_profile(rng)
        model = CostModel(profile, random_workload(rng))
        route = random_route(rng, profile, ends_at_source=rng.random() < 0.5)
        route = replace(route, micro_batches=rng.randint(1, 3), rows=rng.randint(1, 3))
        expected = no_bubbles_rate(model.times(route, route.rows), route.micro_batches, route.rows)
        assert tokens_per_s(model, (route,)) == pytest.approx(expected, rel=1e-12)


def test_stages_of_one_machine_take_turns() -> None:
    apart, together = (CostModel(on_hosts(*hosts), WORKLOAD) for hosts in (("", ""), ("one", "one")))
    assert not shares_hosts(apart)
    assert shares_hosts(together)
    goal = Goal("throughput")
    free, bound = place(apart, goal), place(together, goal)
    assert free is not None
    assert bound is not None
    assert len(free.routes[0].stages) == 2
    assert len(bound.routes[0].stages) == 1
    # What devices of their own would do still bounds it, and is out of reach.
    assert bound.lower_bound == pytest.approx(free.cost)
    assert bound.cost > free.cost * 1.5
    assert not bound.optimal


def test_copies_on_one_machine_take_turns() -> None:
    goal = Goal("throughput", replicas=True)
    apart = place(CostModel(on_hosts("", "", ""), WORKLOAD), goal)
    together = place(CostModel(on_hosts("", "one", "one"), WORKLOAD), goal)
    assert apart is not None
    assert together is not None
    assert together.cost > apart.cost
    assert together.bound_tokens_per_s is not None


def test_the_rate_of_copies_counts_the_source_for_each() -> None:
    model = CostModel(on_hosts("", "", ""), WORKLOAD)
    routes = tuple(
        Route((Stage("a", LayerRange(0, 3)), Stage(name, LayerRange(3, 6))), micro_batches=4) for name in "bc"
    )
    one = tokens_per_s(model, routes[:1])
    assert one == pytest.approx(1e3 / 13.0), "three layers and the head on b"
    # Both copies pass the source's three layers of 4 ms in every period.
    assert tokens_per_s(model, routes) == pytest.approx(2e3 / 24.0)


def test_devices_of_copies_are_their_own() -> None:
    model = CostModel(on_hosts("", "", "", "", ""), WORKLOAD)
    (source,), others = model.classes
    segments = (Segment(0, 0, 2), Segment(1, 2, 4), Segment(1, 4, 6))
    routes = model.routes(segments, copies=2, micro_batches=3, rows=2)
    assert [route.source for route in routes] == [source, source]
    assert sorted(stage.device for route in routes for stage in route.stages[1:]) == sorted(others)
    assert all((route.micro_batches, route.rows) == (3, 2) for route in routes)


def test_a_fixed_batch_has_room_whatever_circulates() -> None:
    model = CostModel(on_hosts("", ""), WORKLOAD)
    fixed, free = place(model, Goal("throughput", batch=4)), place(model, Goal("throughput"))
    assert fixed is not None
    assert free is not None
    assert fixed.sessions == 4
    assert free.sessions == free.routes[0].micro_batches * free.routes[0].rows
    assert fixed.cost == pytest.approx(free.cost)


def test_a_large_batch_without_room_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a fixed batch is the same whatever circulates: 4,000 numbers of rows are not tried one by one."""
    model = CostModel(on_hosts("", ""), WORKLOAD)
    asked: list[int] = []

    def problem(rows: int, sessions: int) -> Problem:
        asked.append(rows)
        return CostModel.pipeline_problem(model, rows, sessions)

    monkeypatch.setattr(model, "pipeline_problem", problem)
    assert place(model, Goal("throughput", batch=1 << 20)) is None
    assert asked == [1]


def test_a_fixed_batch_has_room_on_a_shared_machine_too() -> None:
    model = CostModel(on_hosts("one", "one"), WORKLOAD)
    fixed, free = place(model, Goal("throughput", batch=4)), place(model, Goal("throughput"))
    assert fixed is not None
    assert free is not None
    assert fixed.sessions == 4
    assert free.sessions == free.routes[0].micro_batches * free.routes[0].rows < 4, "alone, a session is as quick"


def test_what_a_fixed_batch_reserves_fits() -> None:
    """Three layers fit for four sessions, four for one: with room for four, whatever circulates, the others go on."""
    profile = plain_profile(plain_device("a", memory_mib=11), plain_device("b", layer_ms=50.0))
    model = CostModel(profile, WORKLOAD)
    fixed = place(model, Goal("throughput", batch=4))
    assert fixed is not None
    stage = fixed.routes[0].stages[0]
    assert model.memory_bytes("a", stage.layers, 4) <= model.memory_available_bytes("a")
    assert model.memory_bytes("a", LayerRange(0, 4), 1) <= model.memory_available_bytes("a")
    assert len(stage.layers) == 3


def test_latency_routes_say_how_many_sessions_are_best() -> None:
    model = CostModel(plain_profile(plain_device("a", layer_ms=9.0), plain_device("b", layer_ms=1.0)), WORKLOAD)
    found = place(model, Goal())
    assert found is not None
    (route,) = found.routes
    assert route.micro_batches > 1
    assert (route.micro_batches, route.rows) == best_batch(model, replace(route, micro_batches=1, rows=1), 4)


def test_asking_again_unchanged_gives_the_same() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        model = CostModel(random_profile(rng), random_workload(rng))
        for goal in (Goal(), Goal("throughput")):
            found = place(model, goal)
            if found is None or shares_hosts(model):
                continue
            again = place_again(model, goal, found, unchanged)
            assert again is not None
            assert again.cost == pytest.approx(found.cost, rel=1e-9)


def test_dead_ends_are_the_same_placements() -> None:
    seen = 0
    for seed in range(80):
        rng = random.Random(seed)
        problem = CostModel(random_profile(rng), random_workload(rng)).latency_problem()
        other = without_dead_ends(problem)
        seen += bool(np.isinf(problem.return_cost).any())
        assert np.isfinite(other.return_cost).all()
        ours, theirs = cheapest_by_enumeration(problem), cheapest_by_enumeration(other)
        assert (ours is None or math.isinf(ours.cost)) == (theirs is None)
        if ours is not None and theirs is not None:
            assert theirs.cost == pytest.approx(ours.cost, rel=1e-12)
    assert seen > 5


def test_goals_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="batch must be at least 1"):
        Goal(batch=0)
    with pytest.raises(ValueError, match="replicas raise throughput"):
        Goal("energy", replicas=True)
