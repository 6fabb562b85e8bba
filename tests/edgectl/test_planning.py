"""From options to an order: context, codec, and what is refused before any device is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.planning import (
    DEFAULT_CONTEXT_TOKENS,
    ServedModel,
    ServingOptions,
    context_of,
    load_plan,
    order_for,
    order_of_plan,
)
from planner.errors import BadPlan, Infeasible
from planner.memory import memory_bytes
from planner.model_spec import parse_config
from planner.types import Allotment, Device, LayerRange, Plan, Route, Stage
from tests.fakes.fake_engine import MODEL_DIR, FakeEngine

SPEC = FakeEngine(script=lambda _: None).spec  # type: ignore[arg-type, return-value]  # only its model is used
MODEL = ServedModel("wiki-32l", "digest", SPEC)
GIB = 1 << 30


def test_the_context_is_what_the_model_has_up_to_the_default() -> None:
    assert context_of(SPEC, ServingOptions()) == SPEC.max_positions == 2048
    long = parse_config({**_config(), "max_position_embeddings": 131072})
    assert context_of(long, ServingOptions()) == DEFAULT_CONTEXT_TOKENS
    assert context_of(long, ServingOptions(context=131072)) == 131072


@pytest.mark.parametrize("context", [0, 2, 2049])
def test_a_context_the_model_has_not_is_refused(context: int) -> None:
    with pytest.raises(ValueError, match=f"--context {context} is outside 3 to 2048"):
        context_of(SPEC, ServingOptions(context=context))


def test_the_order_makes_the_plan_that_was_asked_for() -> None:
    options = ServingOptions(quantization="int4", boundary="bf16", context=64, source="b")
    order = order_for(MODEL, options, ("a", "b"))
    plan = order.plan_for([Device("a", GIB), Device("b", GIB)])
    assert (plan.quantization, plan.boundary, plan.codec, plan.context) == ("int4", "bf16", "bf16", 64)
    assert plan.routes[0].source == "b"
    assert plan.routes[0].layers.stop == 32
    assert (order.min_devices, order.source, order.digest) == (2, "b", "digest")


def test_a_codec_may_differ_from_the_boundary() -> None:
    plan = order_for(MODEL, ServingOptions(codec="int8"), ("a",)).plan_for([Device("a", GIB)])
    assert (plan.boundary, plan.codec) == ("fp16", "int8")


def test_what_does_not_fit_is_said_by_the_planner() -> None:
    with pytest.raises(Infeasible, match="wiki-32l"):
        order_for(MODEL, ServingOptions(), ("a",)).plan_for([Device("a", 1 << 20)])


@pytest.mark.parametrize(
    ("options", "min_devices", "message"),
    [
        (ServingOptions(source="c"), None, "--source c is not among the devices a, b"),
        (ServingOptions(), 0, "--min-devices 0 is outside 1 to 2"),
        (ServingOptions(), 3, "--min-devices 3 is outside 1 to 2"),
    ],
)
def test_options_that_contradict_each_other(options: ServingOptions, min_devices: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_for(MODEL, options, ("a", "b"), min_devices)


def planned(*stages: tuple[str, int, int], **changes: object) -> Plan:
    """A plan for wiki-32l with the given stages: device, first layer, end."""
    placed = tuple(Stage(device, LayerRange(start, stop)) for device, start, stop in stages)
    plan = Plan(
        model="wiki-32l",
        quantization="int4",
        block_size=32,
        boundary="fp16",
        codec="int8",
        context=256,
        routes=(Route(placed, micro_batches=2, rows=2),),
        allotments=tuple(Allotment(stage.device, (stage.layers,), 4, 10, 20) for stage in placed),
        predicted={"ms_per_token": 7.0},
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_a_plan_is_executed_as_it_is_with_the_memory_of_today() -> None:
    plan = planned(("c", 0, 5), ("a", 5, 32))
    order = order_of_plan(MODEL, plan, ("a", "b", "c"))
    assert (order.devices, order.min_devices, order.source) == (("a", "c"), 2, "c")
    executed = order.plan_for([Device("a", GIB), Device("c", GIB // 2)])
    assert replace(executed, allotments=plan.allotments) == plan
    for stage, available in zip(plan.routes[0].stages, (GIB // 2, GIB), strict=True):
        need = memory_bytes(SPEC, stage.layers, quantization="int4", block_size=32, slots=4, context=256)
        assert executed.allotment(stage.device) == Allotment(stage.device, (stage.layers,), 4, need, available)


def test_routes_may_share_a_device_that_holds_the_rows_of_both() -> None:
    shared, left, right = Stage("a", LayerRange(0, 5)), Stage("b", LayerRange(5, 32)), Stage("c", LayerRange(5, 32))
    plan = planned(("a", 0, 5), ("b", 5, 32))
    plan = replace(
        plan,
        routes=(Route((shared, left), 2, 2), Route((shared, right), 1, 3)),
        allotments=tuple(Allotment(s.device, (s.layers,), 9, 10, 20) for s in (shared, left, right)),
    )
    executed = order_of_plan(MODEL, plan, ("a", "b", "c")).plan_for([Device(name, GIB) for name in "abc"])
    assert executed.routes == plan.routes
    assert [executed.allotment(name).slots for name in "abc"] == [7, 4, 3]


def test_sessions_by_default_are_those_there_is_memory_for() -> None:
    options = ServingOptions(context=2048)
    order = order_for(MODEL, options, ("a",))
    need = {
        rows: memory_bytes(SPEC, LayerRange(0, 32), quantization="fp32", block_size=128, slots=rows, context=2048)
        for rows in (1, 2, 3, 4)
    }
    for rows, memory in need.items():
        (route,) = order.plan_for([Device("a", memory)]).routes
        assert (route.micro_batches, route.rows) == (1, rows)
    with pytest.raises(Infeasible):
        order.plan_for([Device("a", need[1] - 1)])
    asked = order_for(MODEL, replace(options, sessions=3), ("a",))
    with pytest.raises(Infeasible, match="3 slots"):
        asked.plan_for([Device("a", need[2])])
    with pytest.raises(ValueError, match="--sessions 0 is outside"):
        order_for(MODEL, ServingOptions(sessions=0), ("a",))


def test_a_device_that_has_less_memory_than_it_had_is_named_with_what_is_short() -> None:
    order = order_of_plan(MODEL, planned(("a", 0, 5), ("b", 5, 32)), ("a", "b"))
    with pytest.raises(Infeasible, match=r"profile and plan again\n  b: \d+ MiB short for layers \[5, 32\)"):
        order.plan_for([Device("a", GIB), Device("b", 1 << 20)])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (planned(("a", 0, 32), model="llama2-7b"), "model: is llama2-7b, but wiki-32l is to be served"),
        (
            planned(("a", 0, 16), ("z", 16, 32)),
            r"routes\[0\].stages\[1\].device: z is not in cluster.toml, which has a, b",
        ),
        (
            planned(("a", 0, 8), ("b", 8, 24), ("a", 24, 32)),
            r"routes\[0\].stages\[2\].device: a has a stage already.*source-first",
        ),
        (planned(("a", 0, 22)), r"routes\[0\].stages: end at layer 22, wiki-32l has 32"),
        (planned(("a", 0, 32), context=4096), "context: is 4096, wiki-32l has 3 to 2048"),
        (planned(("a", 0, 32), routes=(planned(("a", 0, 32)).routes * 2)), r"routes\[0\].rows.*a has 4 slots, and 8"),
        (planned(("a", 0, 32), allotments=()), "rows: are 2 of 2 micro-batches; a has no slots"),
        (planned(("a", 0, 32), routes=(Route((Stage("a", LayerRange(0, 32)),), 1, 17),)), "rows: are 17, 1 to 16"),
        (planned(("a", 0, 32), routes=(Route((Stage("a", LayerRange(0, 32)),), 65, 1),)), "65 micro-batches.*most 64"),
        (planned(("a", 0, 32), routes=(Route((Stage("a", LayerRange(0, 32)),), 0, 1),)), "micro_batches: are 0"),
        (
            planned(("a", 0, 32), allotments=(Allotment("a", (LayerRange(0, 31),), 4, 10, 20),)),
            r"routes\[0\].stages\[0\].layers: \[0, 32\) are not resident on a",
        ),
    ],
)
def test_plans_that_cannot_be_executed_name_the_field_and_the_way_out(plan: Plan, message: str) -> None:
    with pytest.raises(BadPlan, match=message):
        order_of_plan(MODEL, plan, ("a", "b"))


def test_a_plan_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json.*edgectl plan --out"):
        load_plan(tmp_path / "absent.json")


def _config() -> dict[str, object]:
    import json

    config: dict[str, object] = json.loads((MODEL_DIR / "config.json").read_text())
    return config
