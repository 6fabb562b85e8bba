"""The default plan: covers every layer once, fits, is in proportion, and explains itself when there is no room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire import codec
from planner.errors import Infeasible
from planner.memory import memory_bytes
from planner.memory_proportional import MAX_ROWS, memory_proportional
from planner.model_spec import ModelSpec, RopeSpec
from planner.types import Device, LayerRange, Plan

MIB = 1 << 20

SPEC = ModelSpec(
    architecture="llama",
    num_layers=32,
    hidden_size=2048,
    intermediate_size=5632,
    num_heads=32,
    num_kv_heads=4,
    head_dim=64,
    vocab_size=32000,
    max_positions=2048,
    rms_norm_eps=1e-5,
    rope=RopeSpec(),
    tied_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_windows=(None,) * 32,
)
FORMULA: dict[str, Any] = {"quantization": "int4", "block_size": 32, "context": 1024}
PLENTY = 100_000 * MIB


def with_layers(num_layers: int) -> ModelSpec:
    return replace(SPEC, num_layers=num_layers, sliding_windows=(None,) * num_layers)


def plan_for(*devices: Device, spec: ModelSpec = SPEC, source: str | None = None, sessions: int = 2) -> Plan:
    return memory_proportional(
        "tiny", spec, devices, boundary="fp16", codec="fp16", source=source, sessions=sessions, **FORMULA
    )


def need(layers: LayerRange, spec: ModelSpec = SPEC, slots: int = 2) -> int:
    return memory_bytes(spec, layers, slots=slots, **FORMULA)


def lengths(plan: Plan) -> dict[str, int]:
    return {stage.device: len(stage.layers) for stage in plan.routes[0].stages}


def test_equal_devices_share_equally_less_the_head() -> None:
    plan = plan_for(*(Device(name, PLENTY) for name in "abc"))
    # The head, 65 M parameters of 44 M a layer, stands for a layer and a half.
    assert lengths(plan) == {"a": 11, "b": 11, "c": 10}
    assert plan.routes[0].source == "a"
    assert (plan.routes[0].micro_batches, plan.routes[0].rows) == (2, 1)
    assert plan.allotment("c").resident == (LayerRange(22, 32),)
    assert plan.allotment("c").memory_bytes == need(LayerRange(22, 32))
    assert plan.allotment("c").memory_available_bytes == PLENTY


@given(sessions=st.integers(1, 64), names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
def test_there_is_room_for_the_sessions_in_a_micro_batch_per_stage(sessions: int, names: list[str]) -> None:
    plan = plan_for(*(Device(name, PLENTY) for name in names), sessions=sessions)
    (route,) = plan.routes
    slots = route.micro_batches * route.rows
    assert sessions <= slots < sessions + route.micro_batches
    assert 1 <= route.rows <= MAX_ROWS
    assert route.micro_batches >= min(len(names), sessions)
    for stage in route.stages:
        allotment = plan.allotment(stage.device)
        assert allotment.slots == slots
        assert allotment.memory_bytes == need(stage.layers, slots=slots)


def test_no_session_is_no_plan() -> None:
    with pytest.raises(ValueError, match="not 0"):
        plan_for(Device("a", PLENTY), sessions=0)


def test_a_micro_batch_has_as_many_rows_as_a_frame_holds() -> None:
    assert MAX_ROWS == codec.MAX_ROWS


def test_the_source_comes_first_and_the_rest_stay_in_order() -> None:
    plan = plan_for(*(Device(name, PLENTY) for name in "abc"), source="b")
    assert list(lengths(plan)) == ["b", "a", "c"]


def test_one_device_takes_everything() -> None:
    everything = need(LayerRange(0, 32))
    assert lengths(plan_for(Device("solo", everything))) == {"solo": 32}
    with pytest.raises(Infeasible) as refused:
        plan_for(Device("solo", everything - 1))
    assert refused.value.causes == ("solo: 1 MiB short for layers [0, 32)",)


def test_a_device_that_is_full_passes_its_layers_on() -> None:
    """In proportion the first would hold 5 of 32 layers; what surrounds the weights leaves it room for 2."""
    small = need(LayerRange(0, 2))
    assert need(LayerRange(0, 32)) > 6 * small
    plan = plan_for(Device("small", small), Device("large", need(LayerRange(2, 32))))
    assert lengths(plan) == {"small": 2, "large": 30}


def test_a_device_without_room_for_a_layer_is_left_out() -> None:
    none = Device("watch", need(LayerRange(0, 1)) - 1)
    assert lengths(plan_for(none, Device("a", PLENTY), Device("b", PLENTY))) == {"a": 17, "b": 15}
    assert list(lengths(plan_for(Device("a", PLENTY), none))) == ["a"]
    with pytest.raises(Infeasible, match="watch: 1 MiB short for one layer, and the source must hold one"):
        plan_for(none, Device("a", PLENTY), source="watch")


def test_more_devices_than_layers_leaves_out_the_smallest() -> None:
    devices = [Device("a", PLENTY), Device("b", PLENTY // 4), Device("c", PLENTY // 2), Device("d", PLENTY)]
    assert lengths(plan_for(*devices, spec=with_layers(2))) == {"a": 1, "d": 1}
    assert lengths(plan_for(*devices, spec=with_layers(2), source="b")) == {"b": 1, "a": 1}
    assert lengths(plan_for(*devices, spec=with_layers(1))) == {"a": 1}


def test_infeasible_names_every_device_and_the_way_out() -> None:
    quarter = need(LayerRange(0, 8))
    with pytest.raises(Infeasible) as refused:
        plan_for(Device("agx-1", quarter), Device("watch", 1), Device("agx-2", quarter))
    text = str(refused.value)
    assert text.startswith("tiny (32 layers, int4, 2 slots of 1024 tokens) does not fit; take fewer sessions")
    watch, first, second = refused.value.causes
    assert watch.startswith("watch: ")
    assert watch.endswith(" MiB short for one layer")
    short_mib = -(-(need(LayerRange(0, 17)) - quarter) // MIB)
    assert first == f"agx-1: {short_mib} MiB short for layers [0, 17)"
    assert second.endswith("short for layers [17, 32)")


def test_no_device_and_wrong_names() -> None:
    with pytest.raises(Infeasible, match="there is no device"):
        plan_for()
    with pytest.raises(ValueError, match="named twice"):
        plan_for(Device("a", PLENTY), Device("a", PLENTY))
    with pytest.raises(ValueError, match="source x is not among the devices: a"):
        plan_for(Device("a", PLENTY), source="x")


MEMORIES = st.lists(st.integers(0, 1500), min_size=1, max_size=6)


@given(memories=MEMORIES, num_layers=st.integers(1, 40), source=st.integers(-1, 5))
def test_every_plan_covers_fits_and_is_repeatable(memories: list[int], num_layers: int, source: int) -> None:
    spec = with_layers(num_layers)
    devices = [Device(f"d{place}", size * MIB) for place, size in enumerate(memories)]
    first = devices[source].name if 0 <= source < len(devices) else None
    try:
        plan = plan_for(*devices, spec=spec, source=first)
    except Infeasible:
        return
    route = plan.routes[0]
    assert [layer for stage in route.stages for layer in stage.layers] == list(range(num_layers))
    assert first in (None, route.source)
    for stage in route.stages:
        allotment = plan.allotment(stage.device)
        assert allotment.memory_bytes == need(stage.layers, spec) <= allotment.memory_available_bytes
    assert plan_for(*devices, spec=spec, source=first) == plan


@given(memories=MEMORIES, num_layers=st.integers(6, 40))
def test_refused_only_when_there_is_no_way_in_this_order(memories: list[int], num_layers: int) -> None:
    """Greedy from the front fills every device to its most; if even that leaves layers over, nothing fits."""
    spec = with_layers(num_layers)
    devices = [Device(f"d{place}", size * MIB) for place, size in enumerate(memories)]
    # The last device that can hold the head must be the last of the route: the order is given.
    tail = next(
        (d for d in reversed(devices) if need(LayerRange(num_layers - 1, num_layers), spec) <= d.memory_bytes), None
    )
    fits = False
    if tail is not None:
        left = num_layers
        for device in devices[: devices.index(tail)]:
            left -= max((n for n in range(1, left) if need(LayerRange(0, n), spec) <= device.memory_bytes), default=0)
        fits = need(LayerRange(num_layers - left, num_layers), spec) <= tail.memory_bytes
    try:
        plan_for(*devices, spec=spec)
    except Infeasible:
        assert not fits
    else:
        assert fits


@given(memories=st.lists(st.integers(1, 100), min_size=1, max_size=8), num_layers=st.integers(8, 80))
def test_in_proportion_within_one_layer_when_nothing_is_tight(memories: list[int], num_layers: int) -> None:
    spec = with_layers(num_layers)
    plan = plan_for(*(Device(f"d{place}", size * PLENTY) for place, size in enumerate(memories)), spec=spec)
    layer = need(LayerRange(0, 2), spec) - need(LayerRange(0, 1), spec)
    head = (need(LayerRange(num_layers - 1, num_layers), spec) - need(LayerRange(0, 1), spec)) / layer
    shares = [(num_layers + head) * size / sum(memories) for size in memories]
    shares[-1] -= head
    assert len(plan.routes[0].stages) == len(memories)
    if min(shares) >= 1:
        for share, length in zip(shares, lengths(plan).values(), strict=True):
            assert abs(share - length) < 1 + 1e-9
