"""Plans widened for split points: what fits by the formula and no more, held against every split on its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.adaptive.plan import cuts_of, route_at, split_points_of, widen
from planner.errors import Infeasible
from planner.memory import memory_bytes
from planner.model_spec import parse_config
from planner.types import Allotment, LayerRange, Plan, Route, Stage

MODEL = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"
SPEC = parse_config(json.loads((MODEL / "config.json").read_text()))
SLOTS, CONTEXT, BLOCK = 2, 256, 32
PLENTY = 1 << 40


def need(start: int, stop: int) -> int:
    layers = LayerRange(start, stop)
    return memory_bytes(SPEC, layers, quantization="fp32", block_size=BLOCK, slots=SLOTS, context=CONTEXT)


def plan_of(*routes: Route, memory: dict[str, int] | None = None) -> Plan:
    held: dict[str, set[LayerRange]] = {}
    for route in routes:
        for stage in route.stages:
            held.setdefault(stage.device, set()).add(stage.layers)
    allotments = tuple(
        Allotment(name, tuple(sorted(ranges)), SLOTS, 0, (memory or {}).get(name, PLENTY))
        for name, ranges in held.items()
    )
    return Plan("m", "fp32", BLOCK, "fp16", "fp16", CONTEXT, routes, allotments, {"ms_per_token": 5.0})


def route(*stops: int, names: str = "abcdef") -> Route:
    starts = (0, *stops)
    stages = [Stage(name, LayerRange(*ends)) for name, *ends in zip(names, starts, stops, strict=False)]
    return Route(tuple(stages), 1, SLOTS)


@given(
    own=st.integers(1, 31),
    splits=st.lists(st.integers(-1, 33), min_size=1, max_size=8),
    first=st.integers(1, 32),
    second=st.integers(0, 31),
)
def test_what_is_kept_is_every_split_that_both_devices_have_room_for(
    own: int, splits: list[int], first: int, second: int
) -> None:
    memory = {"a": need(0, first), "b": need(second, 32)}
    plan = plan_of(route(own, 32), memory=memory)
    fitting = {split for split in splits if 0 < split <= first and second <= split < 32}
    if not fitting:
        with pytest.raises(Infeasible):
            widen(plan, SPEC, splits)
        return
    widened = widen(plan, SPEC, splits).plan
    (cut,) = widened.routes
    assert set(split_points_of(widened, cut, splits)) >= fitting
    assert cut.stages[0].layers.stop == min(fitting, key=lambda split: (abs(split - own), split))
    assert widened.allotment("a").resident == (LayerRange(0, max(fitting)),)
    assert widened.allotment("b").resident == (LayerRange(min(fitting), 32),)
    for allotment in widened.allotments:
        assert allotment.memory_bytes == sum(need(held.start, held.stop) for held in allotment.resident)
        assert allotment.memory_bytes <= allotment.memory_available_bytes
    assert bool(widened.predicted) == (cut == plan.routes[0])


def test_what_does_not_fit_is_named_with_the_device_and_what_it_lacks() -> None:
    plan = plan_of(route(8, 32), memory={"a": need(0, 16), "b": need(4, 32) - 1})
    notes = widen(plan, SPEC, (2, 4, 8, 16, 24, 40)).notes
    assert "a b goes without split 40: b ends at layer 32" in notes[0]
    assert any("without split 24: a is" in note and "MiB short for layers [0, 24)" in note for note in notes)
    assert any("without split 2: b is" in note and "[2, 32)" in note for note in notes)
    assert any("without split 4: b is 1 MiB short" in note for note in notes)
    with pytest.raises(Infeasible, match="no split of the policy is possible") as refused:
        widen(plan, SPEC, (24, 31))
    assert any("a is" in cause for cause in refused.value.causes)


def test_a_plan_of_one_device_stays_as_it_is_and_says_so() -> None:
    plan = plan_of(Route((Stage("a", LayerRange(0, 32)),), 1, 1))
    widened = widen(plan, SPEC, (4, 8))
    assert widened.plan is plan
    assert "nothing to do" in widened.notes[0]
    assert split_points_of(plan, plan.routes[0], (4, 8)) == ()


def test_only_the_boundary_behind_the_source_moves() -> None:
    plan = plan_of(route(8, 16, 32))
    widened = widen(plan, SPEC, (4, 8, 12, 15, 16, 20)).plan
    assert [allotment.resident for allotment in widened.allotments] == [
        (LayerRange(0, 15),),
        (LayerRange(4, 16),),
        (LayerRange(16, 32),),
    ]
    (cut,) = widened.routes
    moved = route_at(cut, 12)
    assert [stage.layers for stage in moved.stages] == [LayerRange(0, 12), LayerRange(12, 16), LayerRange(16, 32)]
    assert route_at(moved, 8) == cut


def test_a_split_the_policy_lacks_gives_way_to_the_nearest() -> None:
    widened = widen(plan_of(route(10, 32)), SPEC, (1, 4, 8, 16))
    assert widened.plan.routes[0].stages[0].layers.stop == 8
    assert "may be split at 1, 4, 8, 16 and begins at 8, since the plan's 10 is not the policy's" in widened.notes[0]
    assert not widened.plan.predicted
    alone = widen(plan_of(route(10, 32)), SPEC, (8,))
    assert "with one split the policy has nothing to choose" in alone.notes[-1]
    assert widen(plan_of(route(8, 32)), SPEC, (4, 8)).notes == ("the route a b may be split at 4, 8 and begins at 8",)


def test_routes_that_share_a_source_share_its_layers() -> None:
    plan = plan_of(route(8, 32, names="ab"), route(12, 32, names="ac"), Route((Stage("d", LayerRange(0, 32)),), 1, 1))
    widened = widen(plan, SPEC, (4, 8, 12)).plan
    assert [allotment.resident for allotment in widened.allotments] == [
        (LayerRange(0, 12),),
        (LayerRange(4, 32),),
        (LayerRange(4, 32),),
        (LayerRange(0, 32),),
    ]
    points = {number: split_points_of(widened, each, (4, 8, 12)) for number, each in enumerate(widened.routes)}
    assert points == {0: (4, 8, 12), 1: (4, 8, 12), 2: ()}
    assert cuts_of(widened.allotment("a").resident, points) == (4, 8)
    assert cuts_of(widened.allotment("b").resident, points) == (8, 12)


def test_what_a_plan_keeps_beyond_its_stages_stays() -> None:
    plan = plan_of(route(8, 32))
    spare = Allotment("b", (LayerRange(0, 2), LayerRange(8, 32)), SLOTS, 0, PLENTY)
    plan = Plan("m", "fp32", BLOCK, "fp16", "fp16", CONTEXT, plan.routes, (plan.allotments[0], spare))
    assert widen(plan, SPEC, (4, 8)).plan.allotment("b").resident == (LayerRange(0, 2), LayerRange(4, 32))
    # What it keeps twice it loads once.
    assert widen(plan, SPEC, (1, 8)).plan.allotment("b").resident == (LayerRange(0, 32),)
