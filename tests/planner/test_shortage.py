"""Causes when nothing fits: true of every placement, and naming layers, MiB and device."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from planner.cost import CostModel
from planner.exhaustive import cheapest_by_enumeration
from planner.profile import ClusterProfile
from planner.shortage import MIB, shortages
from planner.types import LayerRange
from planner.workload import Privacy, Workload
from tests.fakes.random_profiles import plain_device, plain_profile, random_profile, random_workload

WORKLOAD = Workload(quantization="fp32", codec="fp32", prompt=1, tokens=8, context=64, counts_workspace=False)


def room_for(layers: float, *, head: bool = False) -> int:
    """Bytes for so many layers of the small model."""
    model = CostModel(plain_profile(plain_device("a")), WORKLOAD)
    parts = model.memory_parts()
    return int(layers * parts.layer) + parts.last * head


def cluster(*room: int) -> ClusterProfile:
    return plain_profile(*(plain_device(name, memory_bytes=size) for name, size in zip("abcd", room, strict=False)))


def causes_of(profile: ClusterProfile, privacy: Privacy = "source-first") -> list[str]:
    model = CostModel(profile, WORKLOAD, privacy=privacy)
    assert cheapest_by_enumeration(model.latency_problem()) is None
    return shortages(model)


def test_all_together_are_too_small() -> None:
    causes = causes_of(cluster(room_for(2.5), room_for(1, head=True)))
    layer_mib = -(-3 * room_for(1) // MIB)
    assert causes[0] == f"all devices together hold 3 of 6 layers; layers [3, 6) lack {layer_mib} MiB"
    assert causes[1].startswith("a: holds 2 layers in")
    assert "one more lacks" in causes[1]


def test_the_source_is_too_small_for_layer_0() -> None:
    causes = causes_of(cluster(room_for(0.5), room_for(9, head=True)))
    assert causes[0].startswith("a: the source must hold layer 0: ")
    assert "are lacking" in causes[0]


def test_nobody_holds_the_head() -> None:
    causes = causes_of(cluster(*[room_for(1.05)] * 4))
    assert causes[0].startswith("a: layer 5 and the head: ")


def test_only_the_source_holds_the_head() -> None:
    expected = "only a can hold the head, and with it 4 of 6 layers; layers [4, 6) lack "
    assert causes_of(cluster(room_for(4.05, head=True)))[0].startswith(expected)
    assert causes_of(cluster(room_for(4.05, head=True), room_for(1), room_for(1)))[0].startswith(expected)


def test_trusted_ends_need_both_ends_on_the_source() -> None:
    causes = causes_of(cluster(room_for(1.5, head=True), room_for(9, head=True)), "trusted-ends")
    assert causes[0].startswith("a: the source must hold first and last layer and the head: ")
    causes = causes_of(cluster(room_for(2, head=True), room_for(1)), "trusted-ends")
    assert causes[0].startswith("all devices together hold 3 of 6 layers")


def test_missing_links_are_said() -> None:
    profile = cluster(room_for(2), room_for(9, head=True))
    assert "a has no link" in causes_of(replace(profile, links=()))[0]
    back_only = tuple(link for link in profile.links if link.source == "a")
    assert "a has links to b" in causes_of(replace(profile, links=back_only))[0]


def test_equal_devices_take_one_line() -> None:
    causes = causes_of(cluster(room_for(1), room_for(1), room_for(1), room_for(1)))
    assert [cause for cause in causes if cause.startswith("b (and 2 like it)")]


@pytest.mark.parametrize("seed", range(150))
def test_memory_is_blamed_just_when_memory_is_lacking(seed: int) -> None:
    """With every link there, enumeration finds a placement just when the causes would blame the links."""
    rng = random.Random(seed)
    profile = random_profile(rng, max_layers=6)
    devices = [replace(device, host="", memory_bytes=device.memory_bytes // 2) for device in profile.devices]
    linked = plain_profile(*devices, num_layers=profile.spec.num_layers)
    privacy = rng.choice(["source-first", "trusted-ends"])
    workload = replace(random_workload(rng), sessions=rng.randint(1, 3))
    model = CostModel(linked, workload, privacy=privacy)  # type: ignore[arg-type]
    infeasible = cheapest_by_enumeration(model.latency_problem()) is None
    assert infeasible == ("memory would do" not in shortages(model)[0])
    for cause in shortages(model):
        assert "-" not in cause.replace("device-", "")
    assert model.memory_bytes(model.source, LayerRange(0, 1)) > 0
