"""Baselines follow their rules, fit or say why not, and never undercut the planner."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from planner.baselines import baseline_routes, cloud_of
from planner.cost import CostModel
from planner.errors import Infeasible
from planner.latency import cheapest_route
from planner.prediction import predict
from planner.types import LayerRange, Route, Stage
from planner.workload import Privacy, Workload
from tests.fakes.random_profiles import plain_device, plain_link, plain_profile, random_profile, random_workload

NAMES = {
    "solo",
    "even",
    "cloud-edge-even",
    "cloud-edge-opt",
    "memory-proportional",
    "communication-blind",
    "algorithm-1",
    "algorithm-2",
}
WORKLOAD = Workload(quantization="fp32", prompt=4, tokens=4, context=64, counts_workspace=False)


def model_of(*devices: Any, num_layers: int = 6, privacy: Privacy = "source-first") -> CostModel:
    return CostModel(plain_profile(*devices, num_layers=num_layers), WORKLOAD, privacy=privacy)


def lengths(found: Route | Infeasible) -> list[tuple[str, int]]:
    assert isinstance(found, Route), found
    return [(stage.device, len(stage.layers)) for stage in found.stages]


def held_mib(count: int, *, num_layers: int = 6) -> int:
    """MiB for `count` layers behind the first, without the head."""
    need = model_of(plain_device("a"), num_layers=num_layers).memory_bytes("a", LayerRange(1, 1 + count))
    return -(-need // (1 << 20))


def test_by_hand() -> None:
    found = baseline_routes(model_of(plain_device("a"), plain_device("b", layer_ms=1), plain_device("c", layer_ms=9)))
    assert set(found) == NAMES
    assert lengths(found["solo"]) == [("a", 6)]
    assert lengths(found["even"]) == [("a", 2), ("b", 2), ("c", 2)]
    assert lengths(found["cloud-edge-even"]) == [("a", 3), ("b", 3)]
    assert lengths(found["memory-proportional"]) == [("a", 2), ("b", 2), ("c", 2)]
    # Without hops everything but layer 0 belongs on the fastest.
    assert lengths(found["communication-blind"]) == [("a", 1), ("b", 5)]


def test_layers_that_do_not_divide() -> None:
    devices = [plain_device("a"), plain_device("b", layer_ms=1), plain_device("c")]
    found = baseline_routes(model_of(*devices, num_layers=7))
    assert lengths(found["even"]) == [("a", 3), ("b", 2), ("c", 2)]
    assert lengths(found["cloud-edge-even"]) == [("a", 3), ("b", 4)]


def test_communication_blind_is_blind_to_latency_bandwidth_and_the_way_back() -> None:
    quick = [plain_device("a", layer_ms=9), plain_device("b", layer_ms=1)]
    for link in ({"latency_ms": 1e4}, {"bandwidth": 1.0}):
        links = (plain_link("a", "b", **link), plain_link("b", "a", **link))
        model = CostModel(replace(plain_profile(*quick), links=links), WORKLOAD)
        found = baseline_routes(model)
        assert lengths(found["communication-blind"]) == [("a", 1), ("b", 5)]
        assert lengths(found["cloud-edge-opt"]) == [("a", 6)]


def test_memory_proportional_counts_the_embedding_on_the_source_alone() -> None:
    """A spec whose embedding weighs as much as many layers: the source holds fewer, the others are not charged."""
    profile = plain_profile(*(plain_device(name) for name in "abc"), num_layers=12)
    profile = replace(profile, spec=replace(profile.spec, vocab_size=20_000, tied_embeddings=True))
    workload = replace(WORKLOAD, counts_embedding=True)
    need = CostModel(profile, workload).memory_bytes
    sizes = {"a": need("a", LayerRange(0, 2)), "b": need("b", LayerRange(2, 7)), "c": need("c", LayerRange(7, 12))}
    devices = tuple(replace(device, memory_bytes=sizes[device.name]) for device in profile.devices)
    found = baseline_routes(CostModel(replace(profile, devices=devices), workload))
    assert lengths(found["memory-proportional"]) == [("a", 2), ("b", 5), ("c", 5)]


def test_even_leaves_out_who_cannot_hold_a_share_and_keeps_the_order() -> None:
    small = plain_device("small", memory_mib=held_mib(1) - 1)
    found = baseline_routes(model_of(plain_device("a"), small, plain_device("b")))
    assert lengths(found["even"]) == [("a", 3), ("b", 3)]
    many = [plain_device(name) for name in "abcdefgh"]
    assert [name for name, _ in lengths(baseline_routes(model_of(*many))["even"])] == list("abcdef")


def test_what_does_not_fit_names_device_layers_and_mib() -> None:
    devices = [plain_device(name, memory_mib=held_mib(3)) for name in "ab"]
    found = baseline_routes(model_of(*devices, num_layers=40))
    for name in NAMES - {"algorithm-1", "algorithm-2", "communication-blind"}:
        refused = found[name]
        assert isinstance(refused, Infeasible), name
        assert any("MiB short for layers [" in cause or "MiB short for one" in cause for cause in refused.causes), name
    solo = found["solo"]
    assert isinstance(solo, Infeasible)
    assert len(solo.causes) == 1
    assert solo.causes[0].startswith("a: ")
    assert solo.causes[0].endswith("MiB short for layers [0, 40)")
    blind = found["communication-blind"]
    assert isinstance(blind, Infeasible)
    assert blind.causes


def test_a_single_device_and_a_single_layer() -> None:
    found = baseline_routes(model_of(plain_device("a")))
    assert [name for name, each in found.items() if isinstance(each, Infeasible)] == [
        "cloud-edge-even",
        "cloud-edge-opt",
        "algorithm-2",
    ]
    assert isinstance(baseline_routes(model_of(plain_device("a"), num_layers=1))["solo"], Route)
    assert cloud_of(model_of(plain_device("a"))) is None


def test_missing_links_are_a_cause() -> None:
    profile = plain_profile(plain_device("a", layer_ms=9), plain_device("b", layer_ms=1), links=False)
    found = baseline_routes(CostModel(profile, WORKLOAD))
    refused = found["cloud-edge-even"]
    assert isinstance(refused, Infeasible)
    assert refused.causes == ("no link from a to b", "no link from b to a")
    assert lengths(found["cloud-edge-opt"]) == [("a", 6)]
    one_way = replace(profile, links=(plain_link("a", "b"),))
    refused = baseline_routes(CostModel(one_way, WORKLOAD))["cloud-edge-even"]
    assert isinstance(refused, Infeasible)
    assert refused.causes == ("no link from b to a",)


def test_fifteen_devices_are_too_many_for_algorithm_2() -> None:
    refused = baseline_routes(model_of(*(plain_device(f"d{place}") for place in range(15))))["algorithm-2"]
    assert isinstance(refused, Infeasible)
    assert "2^M states" in refused.causes[0]


def test_a_thousand_devices_are_too_many_for_a_float_as_well() -> None:
    unlinked = plain_profile(*(plain_device(f"d{place}") for place in range(1020)), links=False)
    refused = baseline_routes(CostModel(unlinked, WORKLOAD))["algorithm-2"]
    assert isinstance(refused, Infeasible)
    assert "1020 devices" in refused.causes[0]


def test_trusted_ends_bring_the_last_layer_home() -> None:
    devices = [plain_device("a"), plain_device("b", layer_ms=1), plain_device("c", layer_ms=2)]
    for name, each in baseline_routes(model_of(*devices, privacy="trusted-ends")).items():
        if isinstance(each, Route):
            assert each.stages[-1].device == "a", name
    found = baseline_routes(model_of(*devices, privacy="trusted-ends"))
    assert lengths(found["even"]) == [("a", 2), ("b", 2), ("c", 1), ("a", 1)]
    assert lengths(found["communication-blind"]) == [("a", 1), ("b", 4), ("a", 1)]
    few = baseline_routes(model_of(*devices, num_layers=2, privacy="trusted-ends"))
    assert lengths(few["cloud-edge-even"]) == [("a", 2)]


@pytest.mark.parametrize("seed", range(60))
def test_every_route_fits_and_none_undercuts_the_planner(seed: int) -> None:
    rng = random.Random(seed)
    profile = random_profile(rng)
    workload = replace(random_workload(rng), quantization=profile.quantization)
    model = CostModel(profile, workload)
    best = cheapest_route(model.latency_problem())
    objective: dict[str, float] = {}
    for name, found in baseline_routes(model).items():
        if isinstance(found, Infeasible):
            assert found.causes, name
            continue
        assert found.source == model.source
        assert found.layers == LayerRange(0, profile.spec.num_layers)
        for stage in found.stages:
            assert model.memory_used_bytes(stage.device, found) <= model.memory_available_bytes(stage.device)
        objective[name] = predict(model, found, workload.sessions).objective_ms
        assert math.isfinite(objective[name])
        if len({stage.device for stage in found.stages}) == len(found.stages):
            assert best is not None
            assert objective[name] >= best.cost * (1 - 1e-9), name
    if "cloud-edge-opt" in objective:
        assert objective["cloud-edge-opt"] == pytest.approx(best_cut(model), rel=1e-9)
    else:
        assert "solo" not in objective or cloud_of(model) is None
        assert "cloud-edge-even" not in objective


def best_cut(model: CostModel) -> float:
    """By trying every cut between the source and the cloud, and none."""
    layers, cloud = model.spec.num_layers, cloud_of(model)
    assert cloud is not None
    tried = [Route((Stage(model.source, LayerRange(0, layers)),))]
    for cut in range(1, layers):
        tried.append(Route((Stage(model.source, LayerRange(0, cut)), Stage(cloud, LayerRange(cut, layers)))))
    fits = (
        route
        for route in tried
        if all(model.memory_used_bytes(s.device, route) <= model.memory_available_bytes(s.device) for s in route.stages)
    )
    return min(predict(model, route, 1).objective_ms for route in fits)
