"""Interchangeable means: swapping two devices of a class changes no placement's cost."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import pytest

from planner.cost import CostModel
from planner.device_classes import device_classes, link_matrices
from planner.profile import ClusterProfile, DecodePoint, PowerProfile, Timing
from planner.types import Route, Stage
from planner.workload import Workload
from tests.fakes.random_profiles import plain_device, plain_link, plain_profile, random_device, random_route

WORKLOAD = Workload(quantization="fp32", prompt=4, tokens=8, context=64)


def four() -> ClusterProfile:
    return plain_profile(*(plain_device(name) for name in "abcd"))


def test_equal_devices_are_one_class_but_for_the_source() -> None:
    assert device_classes(four(), "a") == (("a",), ("b", "c", "d"))
    assert device_classes(four(), "c") == (("c",), ("a", "b", "d"))


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_bytes": 1},
        {"stage_ms": 0.1},
        {"embedding_ms": 0.1},
        {"provider": "CUDAExecutionProvider"},
        {"decode": (DecodePoint(rows=1, context=0, layer=Timing(ms=2.0001)),)},
        {"power": PowerProfile(idle_w=1, decode_w=2, prefill_w=2, source="sysfs")},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_any_difference_makes_a_class_of_its_own(fields: dict[str, object]) -> None:
    profile = four()
    changed = replace(profile.devices[2], **fields)  # type: ignore[arg-type]
    profile = replace(profile, devices=(*profile.devices[:2], changed, profile.devices[3]))
    assert device_classes(profile, "a") == (("a",), ("b", "d"), ("c",))


def test_what_is_only_said_about_a_device_does_not_count() -> None:
    profile = four()
    said = replace(profile.devices[2], fingerprint={"board": "other"}, estimated=True)
    profile = replace(profile, devices=(*profile.devices[:2], said, profile.devices[3]))
    assert device_classes(profile, "a") == (("a",), ("b", "c", "d"))


@pytest.mark.parametrize(
    ("pair", "classes"),
    [
        # One slow direction sets both its ends apart, from each other too.
        (("b", "c"), (("a",), ("b",), ("c",), ("d",))),
        (("a", "b"), (("a",), ("b",), ("c", "d"))),
        (("d", "a"), (("a",), ("b", "c"), ("d",))),
    ],
)
def test_a_link_that_differs_splits(pair: tuple[str, str], classes: tuple[tuple[str, ...], ...]) -> None:
    profile = four()
    links = tuple(
        replace(link, latency_ms=9.0) if (link.source, link.destination) == pair else link for link in profile.links
    )
    assert device_classes(replace(profile, links=links), "a") == classes
    without = tuple(link for link in profile.links if (link.source, link.destination) != pair)
    assert device_classes(replace(profile, links=without), "a") == classes


def test_both_directions_of_one_pair_leave_its_ends_interchangeable() -> None:
    profile = four()
    links = tuple(
        replace(link, latency_ms=9.0) if {link.source, link.destination} == {"b", "c"} else link
        for link in profile.links
    )
    assert device_classes(replace(profile, links=links), "a") == (("a",), ("b", "c"), ("d",))


def test_a_shared_host_sets_its_devices_apart_from_the_others() -> None:
    profile = plain_profile(plain_device("a"), *(plain_device(n, host="one") for n in "bc"), plain_device("d", host=""))
    assert device_classes(profile, "a") == (("a",), ("b", "c"), ("d",))


@pytest.mark.parametrize("seed", range(40))
def test_swapping_members_changes_nothing(seed: int) -> None:
    """Clusters of few kinds of devices and links, so that classes are large enough to swap in."""
    rng = random.Random(seed)
    kinds = [random_device(rng, "kind") for _ in range(2)]
    devices = [replace(rng.choice(kinds), name=f"d{index}", host="") for index in range(5)]
    speeds = {(a, b): rng.choice([1e6, 1e6, 1e6, 2e6]) for a, b in permutations(range(5), 2)}
    if seed % 2:  # by kind, so that whole kinds are alike
        speeds = {(a, b): 1e6 * (1 + (devices[a].stage_ms < devices[b].stage_ms)) for a, b in speeds}
    links = tuple(plain_link(f"d{a}", f"d{b}", bandwidth=speed) for (a, b), speed in speeds.items())
    profile = replace(plain_profile(*devices), links=links)
    model = CostModel(profile, WORKLOAD)
    assert sorted(name for members in model.classes for name in members) == [device.name for device in devices]
    for members in model.classes:
        for a, b in permutations(members, 2):
            swap = {a: b, b: a}
            for _ in range(3):
                route = random_route(rng, profile)
                if route.source in swap:
                    continue
                swapped = Route(tuple(Stage(swap.get(s.device, s.device), s.layers) for s in route.stages))
                assert model.times(swapped, 2) == model.times(route, 2)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_devices_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    profile = four()
    shuffled = list(profile.devices)
    rng.shuffle(shuffled)
    links = list(profile.links)
    links[0] = replace(links[0], latency_ms=3.0)
    rng.shuffle(links)
    profile = replace(profile, links=tuple(links))
    found = device_classes(replace(profile, devices=tuple(shuffled)), "a")
    assert {frozenset(members) for members in found} == {frozenset(m) for m in device_classes(profile, "a")}


def test_link_matrices() -> None:
    profile = replace(four(), links=(plain_link("a", "c", latency_ms=2.0, bandwidth=5.0),))
    latency_ms, bandwidth = link_matrices(profile)
    assert latency_ms[0, 2] == 2.0
    assert bandwidth[0, 2] == 5.0
    assert bandwidth.sum() == 5.0
