"""The cost model term by term; `test_recost` holds whole routes to a second costing."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.codec import CodecId, payload_bytes
from planner.cost import TOKEN_BYTES, CostModel, hidden_bytes
from planner.errors import BadProfile, UnknownName
from planner.memory import memory_bytes
from planner.problem import Segment
from planner.profile import ClusterProfile, PowerProfile
from planner.types import Codec, LayerRange
from planner.workload import Workload
from tests.fakes.random_profiles import plain_device, plain_link, plain_profile, random_profile, random_workload

WORKLOAD = Workload(quantization="fp32", codec="fp32", prompt=10, tokens=5, context=64, chunk=4)
HIDDEN_BYTES = 256 * 4


def powered(name: str, idle_w: float, decode_w: float, prefill_w: float) -> object:
    power = PowerProfile(idle_w=idle_w, decode_w=decode_w, prefill_w=prefill_w, source="sysfs")
    return plain_device(name, power=power)


def pair(**fields: object) -> ClusterProfile:
    return plain_profile(plain_device("a", **fields), plain_device("b", layer_ms=1.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", get_args(Codec))
@given(hidden=st.integers(1, 20000), rows=st.integers(1, 9), tokens=st.integers(1, 99))
def test_hidden_bytes_are_those_of_the_wire(codec: Codec, hidden: int, rows: int, tokens: int) -> None:
    wire = payload_bytes(CodecId[codec.upper()], (rows, tokens, hidden))
    assert rows * tokens * hidden_bytes(hidden, codec) == wire


def test_decode_has_each_part_where_it_belongs() -> None:
    model = CostModel(pair(stage_ms=0.5, embedding_ms=0.25), WORKLOAD)
    assert model.decode_ms("a", LayerRange(1, 3)) == 0.5 + 2 * 2
    assert model.decode_ms("a", LayerRange(0, 3)) == 0.5 + 3 * 2 + 0.25
    assert model.decode_ms("a", LayerRange(3, 6)) == 0.5 + 3 * 2 + 1
    # One point each: rows cost in proportion.
    assert model.decode_ms("a", LayerRange(0, 6), rows=3) == 0.5 + 3 * (6 * 2 + 0.25 + 1)


def test_prefill_goes_chunk_by_chunk_and_through_the_head_once() -> None:
    model = CostModel(pair(stage_ms=0.5, embedding_ms=0.25), WORKLOAD)
    assert model.chunks == [4, 4, 2]
    assert model.prefill_ms("a", LayerRange(1, 3)) == 3 * 0.5 + 10 * 2 * 2
    assert model.prefill_ms("a", LayerRange(0, 6)) == 3 * 0.5 + 10 * (6 * 2 + 0.25) + 1


def test_hops_and_the_way_back_by_direction() -> None:
    profile = pair()
    links = (plain_link("a", "b", bandwidth=1e6), plain_link("b", "a", latency_ms=3.0, bandwidth=2e3))
    model = CostModel(replace(profile, links=links), WORKLOAD)
    assert model.transfer_ms("a", "b", rows=2) == pytest.approx(2 * HIDDEN_BYTES / 1e3)
    assert model.latency_ms("a", "b") == 0.5
    # A token and not its logits, as EdgeShard (arXiv 2405.14371) has it at the last layer.
    assert model.return_ms("b", rows=3) == pytest.approx(3.0 + 3 * TOKEN_BYTES / 2)
    assert model.return_ms("a") == 0
    alone = CostModel(replace(profile, links=()), WORKLOAD)
    assert math.isinf(alone.transfer_ms("a", "b"))
    assert math.isinf(alone.latency_ms("a", "b"))
    assert math.isinf(alone.return_ms("b"))


def test_memory_is_the_shared_formula() -> None:
    model = CostModel(pair(), WORKLOAD)
    for layers, sessions in ((LayerRange(0, 6), 1), (LayerRange(0, 1), 4), (LayerRange(5, 6), 2)):
        assert model.memory_bytes("b", layers, sessions) == memory_bytes(
            model.spec, layers, quantization="fp32", block_size=128, slots=sessions, context=64
        )
    assert model.memory_available_bytes("a") == 4096 << 20


def test_a_source_that_comes_again_counts_what_is_shared_once() -> None:
    model = CostModel(pair(), WORKLOAD, privacy="trusted-ends")
    route = model.route([Segment(0, 0, 1), Segment(1, 1, 5), Segment(0, 5, 6)])
    assert [stage.device for stage in route.stages] == ["a", "b", "a"]
    apart = model.memory_bytes("a", LayerRange(0, 1)) + model.memory_bytes("a", LayerRange(5, 6))
    assert model.memory_used_bytes("a", route) == apart - model.memory_parts().stage
    assert model.memory_used_bytes("b", route) == model.memory_bytes("b", LayerRange(1, 5))


def test_class_members_are_taken_in_order_of_first_use() -> None:
    model = CostModel(plain_profile(*(plain_device(name) for name in "abcd")), WORKLOAD)
    route = model.route([Segment(0, 0, 1), Segment(1, 1, 2), Segment(1, 2, 6)], micro_batches=3, rows=2)
    assert [stage.device for stage in route.stages] == ["a", "b", "c"]
    assert (route.micro_batches, route.rows) == (3, 2)


def test_devices_of_one_host_are_one_server() -> None:
    profile = plain_profile(plain_device("a", host="x"), plain_device("b", host="x"), plain_device("c", host=""))
    model = CostModel(profile, WORKLOAD)
    route = model.route([Segment(0, 0, 1), Segment(1, 1, 2), Segment(2, 2, 6)])
    assert model.times(route).servers == ("x", "x", "c")
    assert model.times(model.route([Segment(0, 0, 1), Segment(2, 1, 6)])).servers == ()


def test_problem_of_a_disconnected_cluster_allows_only_the_source() -> None:
    profile = replace(pair(), links=())
    for problem in (
        CostModel(profile, WORKLOAD).latency_problem(),
        CostModel(profile, WORKLOAD).pipeline_problem(2, 2),
    ):
        assert math.isinf(problem.cost_of([Segment(0, 0, 3), Segment(1, 3, 6)]))
        assert math.isfinite(problem.cost_of([Segment(0, 0, 6)]))


def test_links_within_a_class_are_its_own() -> None:
    devices = [plain_device(name) for name in "abc"]
    links = tuple(
        plain_link(a, b, latency_ms=7.0 if {a, b} == {"b", "c"} else 0.5) for a in "abc" for b in "abc" if a != b
    )
    problem = CostModel(replace(plain_profile(*devices), links=links), WORKLOAD).pipeline_problem(1, 1)
    assert problem.hop_cost.tolist()[0][1] == 0.5
    assert problem.hop_cost.tolist()[1] == [0.5, 7.0]


def test_the_order_of_devices_in_the_profile_changes_no_cost() -> None:
    devices = [plain_device("a"), plain_device("b", layer_ms=1.0), plain_device("c")]
    profiles = [plain_profile(*(devices[index] for index in order)) for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2))]
    costs = set()
    for profile in profiles:
        model = CostModel(profile, WORKLOAD, source="a")
        place = {members: index for index, members in enumerate(model.classes)}
        segments = [Segment(0, 0, 2), Segment(place[("b",)], 2, 4), Segment(place[("c",)], 4, 6)]
        costs.add(model.latency_problem().cost_of(segments))
    assert len(costs) == 1


@pytest.mark.parametrize("seed", range(30))
def test_more_bandwidth_or_memory_never_costs_more(seed: int) -> None:
    rng = random.Random(seed)
    profile, workload = random_profile(rng), random_workload(rng)
    faster = replace(
        profile,
        links=tuple(replace(link, bandwidth_bytes_per_s=2 * link.bandwidth_bytes_per_s) for link in profile.links),
        devices=tuple(replace(device, memory_bytes=2 * device.memory_bytes) for device in profile.devices),
    )
    # Classes may differ; compare device by device.
    before, after = CostModel(profile, workload), CostModel(faster, workload)
    for a in profile.devices:
        for b in profile.devices:
            assert after.transfer_ms(a.name, b.name) <= before.transfer_ms(a.name, b.name)
    assert np.all(after.latency_problem().memory_bytes.max() >= before.latency_problem().memory_bytes.max())


def test_energy_is_busy_time_above_idle_and_idle_time_of_all() -> None:
    a, b = powered("a", 5, 20, 30), powered("b", 10, 8, 40)
    model = CostModel(plain_profile(a, b), WORKLOAD)  # type: ignore[arg-type]
    assert model.idle_w_by_class().tolist() == [5, 10]
    segments = [Segment(0, 0, 2), Segment(1, 2, 6)]
    time_ms = model.latency_problem().cost_of(segments)
    prefill = [model.prefill_ms("a", LayerRange(0, 2)), model.prefill_ms("b", LayerRange(2, 6))]
    decode_a = model.decode_ms("a", LayerRange(0, 2))
    # b draws less at work than idle: noise of its sensor, and no gain.
    above_idle = (25 * prefill[0] + 30 * prefill[1] + 4 * 15 * decode_a) / 5
    assert model.energy_problem(15).cost_of(segments) == pytest.approx((above_idle + 15 * time_ms) / 1e3)


def test_energy_without_idle_power_still_needs_links() -> None:
    a, b = powered("a", 0, 20, 30), powered("b", 0, 8, 40)
    profile = replace(plain_profile(a, b), links=())  # type: ignore[arg-type]
    problem = CostModel(profile, WORKLOAD).energy_problem(0)
    assert math.isinf(problem.cost_of([Segment(0, 0, 2), Segment(1, 2, 6)]))
    assert not np.isnan(problem.hop_cost_per_byte).any()


def test_energy_names_the_device_without_power() -> None:
    silent = plain_device("b", missing={"power": "no sensor was found"})
    model = CostModel(plain_profile(powered("a", 1, 2, 2), silent), WORKLOAD)  # type: ignore[arg-type]
    with pytest.raises(BadProfile, match="device b: no power: no sensor was found"):
        model.idle_w_by_class()
    with pytest.raises(BadProfile, match="device b"):
        model.energy_problem(1)


def test_an_unknown_source_or_device_is_named() -> None:
    with pytest.raises(UnknownName, match="unknown device 'c'"):
        CostModel(pair(), WORKLOAD, source="c")
    model = CostModel(pair(), WORKLOAD)
    for ask in (
        lambda: model.decode_ms("c", LayerRange(0, 1)),
        lambda: model.memory_bytes("c", LayerRange(0, 1)),
        lambda: model.transfer_ms("a", "c"),
    ):
        with pytest.raises(UnknownName, match="'c'"):
            ask()


@pytest.mark.parametrize(
    ("taken", "place"),
    [({"quantization": "int4"}, "quantization"), ({"quantization": "int8", "block_size": 32}, "quantization")],
)
def test_a_profile_of_other_weights_is_refused(taken: dict[str, object], place: str) -> None:
    with pytest.raises(BadProfile, match=place):
        CostModel(replace(pair(), **taken), WORKLOAD)  # type: ignore[arg-type]


def test_a_profile_of_other_blocks_is_refused_where_weights_have_blocks() -> None:
    profile = replace(pair(), quantization="int4", block_size=32)
    with pytest.raises(BadProfile, match="blocks of 32, the plan is for 128"):
        CostModel(profile, replace(WORKLOAD, quantization="int4"))
    CostModel(replace(pair(), block_size=32), WORKLOAD)


def test_absurd_memory_stays_countable() -> None:
    model = CostModel(pair(memory_bytes=1 << 80), replace(WORKLOAD, sessions=1 << 40))
    problem = model.latency_problem()
    assert problem.bytes_before.min() >= 0
    assert problem.memory_bytes.max() < 1 << 50
