"""Advice against planning again with a profile in which the thing is really different."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from planner.answer import Answer, PlanRequest, make_plan
from planner.profile import ClusterProfile, DeviceProfile, Timing
from planner.testbed import load_testbed
from planner.workload import Objective
from tests.fakes.plan_cases import load_cases, request_of
from tests.fakes.random_profiles import plain_device, plain_link, plain_profile

CASES = {case["name"]: case for case in load_cases()}
AGX = re.compile("agx-[1-9]")


@cache
def request_for(model: str, objective: Objective = "latency") -> PlanRequest:
    testbed = load_testbed("edgeshard-paper", model)
    return PlanRequest(profile=testbed.profile, workload=testbed.defaults, objective=objective, source=testbed.source)


@cache
def answer_for(model: str, objective: Objective = "latency") -> Answer:
    return make_plan(request_for(model, objective))


def roomier(profile: ClusterProfile, name: Callable[[str], object]) -> ClusterProfile:
    return changed(profile, name, lambda device: replace(device, memory_bytes=2 * device.memory_bytes))


def faster(profile: ClusterProfile, name: Callable[[str], object]) -> ClusterProfile:
    def halved(timing: Timing) -> Timing:
        return replace(timing, ms=timing.ms / 2)

    return changed(
        profile,
        name,
        lambda device: replace(
            device,
            decode=tuple(replace(point, layer=halved(point.layer)) for point in device.decode),
            prefill=tuple(replace(point, layer=halved(point.layer)) for point in device.prefill),
            head=tuple(replace(point, head=halved(point.head)) for point in device.head),
            embedding_ms=device.embedding_ms / 2,
            stage_ms=device.stage_ms / 2,
        ),
    )


def changed(
    profile: ClusterProfile, name: Callable[[str], object], change: Callable[[DeviceProfile], DeviceProfile]
) -> ClusterProfile:
    return replace(
        profile, devices=tuple(change(device) if name(device.name) else device for device in profile.devices)
    )


def said(answer: Answer, beginning: str) -> str:
    """The number the sentence with this beginning gives."""
    found = [sentence for sentence in answer.advice if sentence.startswith(beginning)]
    assert len(found) == 1, answer.advice
    numbers = re.findall(r"(?:saves|gives) ([\d.]+)", found[0])
    assert len(numbers) == 1
    return str(numbers[0])


@pytest.mark.parametrize("model", ["llama2-7b", "llama2-13b", "llama2-70b"])
def test_doubling_memory_and_speed_save_what_is_said(model: str) -> None:
    request, before = request_for(model), answer_for(model)
    for beginning, profile in (
        ("doubling the memory of cloud-0", roomier(request.profile, "cloud-0".__eq__)),
        ("computing twice as fast on agx-0", faster(request.profile, "agx-0".__eq__)),
        ("computing twice as fast on agx-1 and the 10 like it", faster(request.profile, AGX.fullmatch)),
    ):
        after = make_plan(replace(request, profile=profile))
        assert said(before, beginning) == f"{before.value - after.value:.1f}"


def test_doubling_a_link_saves_what_is_said() -> None:
    """Two fast devices that need each other, over a link that takes most of the time."""
    a, b = (plain_device(name, layer_ms=1.0, memory_mib=10) for name in "ab")
    profile = replace(plain_profile(a, b), links=(plain_link("a", "b", bandwidth=1e4), plain_link("b", "a")))
    request = replace(request_of(CASES["the source is named"]), profile=profile, source="a")
    before = make_plan(request)
    quicker = replace(profile, links=(plain_link("a", "b", bandwidth=2e4), plain_link("b", "a")))
    after = make_plan(replace(request, profile=quicker))
    assert before.advice[0].startswith("limited by link a→b")
    assert said(before, "doubling link a→b") == f"{before.value - after.value:.1f}"
    assert "and all like it" not in before.advice[1]


def test_a_link_that_would_make_splitting_pay() -> None:
    a, b = plain_device("a", layer_ms=5.0, memory_mib=100), plain_device("b", layer_ms=1.0, memory_mib=100)
    slow, back = plain_link("a", "b", bandwidth=2e4), plain_link("b", "a")
    request = replace(request_of(CASES["the source is named"]), source="a")
    before = make_plan(replace(request, profile=replace(plain_profile(a, b), links=(slow, back))))
    quicker = replace(slow, bandwidth_bytes_per_s=4e4)
    after = make_plan(replace(request, profile=replace(plain_profile(a, b), links=(quicker, back))))
    assert (len(before.plan.routes[0].stages), len(after.plan.routes[0].stages)) == (1, 2)
    assert before.sentences[0].startswith("splitting does not pay")
    assert said(before, "doubling link a→b") == f"{before.value - after.value:.1f}"


def test_twice_as_fast_is_so_for_what_a_stage_has_beside_its_layers() -> None:
    request = request_of(CASES["a fast neighbour takes all but the first layer"])
    profile = changed(request.profile, bool, lambda device: replace(device, stage_ms=8.0))
    before = make_plan(replace(request, profile=profile))
    after = make_plan(replace(request, profile=faster(profile, "a".__eq__)))
    assert said(before, "computing twice as fast on a") == f"{before.value - after.value:.1f}"


def test_rates_are_those_of_planning_again() -> None:
    request, before = request_for("llama2-7b", "throughput"), answer_for("llama2-7b", "throughput")
    # The batch is kept: with it free the rate may be higher still.
    after = make_plan(replace(request, profile=faster(request.profile, "cloud-0".__eq__)))
    rate = float(said(before, "computing twice as fast on cloud-0"))
    assert before.prediction.tokens_per_s < rate <= after.prediction.tokens_per_s + 0.01


def test_the_limit_is_the_largest_part() -> None:
    limit = answer_for("llama2-7b").advice[0]
    assert limit == "limited by compute on cloud-0: 44.0 of 75.1 ms per token (59%)"
    assert answer_for("llama2-70b").advice[0].startswith("limited by compute on agx-1 and 7 like it: 2923.2 of 3079.4")


def test_the_limit_of_a_rate_is_its_bottleneck_or_the_ring() -> None:
    assert answer_for("llama2-7b", "throughput").advice[0].startswith("limited by compute on cloud-0: 51.5 ms")
    assert answer_for("llama2-70b", "throughput").advice[0].startswith("limited by the ring: a token takes 3079.4 ms")


def test_the_best_comes_first_and_trifles_do_not() -> None:
    for model in ("llama2-7b", "llama2-13b", "llama2-70b"):
        savings = [float(re.findall(r"saves ([\d.]+)", sentence)[0]) for sentence in answer_for(model).advice[1:]]
        assert savings == sorted(savings, reverse=True)
        assert min(savings) >= 0.01 * answer_for(model).value


def test_memory_is_not_advised_where_it_does_not_bind() -> None:
    answer = make_plan(request_of(CASES["a fast neighbour takes all but the first layer"]))
    assert not [sentence for sentence in answer.advice if "memory" in sentence]


def test_a_device_alone_has_only_itself() -> None:
    answer = make_plan(request_of(CASES["equal devices with room: do not split"]))
    assert answer.advice[0].startswith("limited by compute on a: 13.0 of 13.0 ms")
    assert len(answer.advice) == 2


def test_advice_for_energy_is_in_joules() -> None:
    answer = answer_for("llama2-7b", "energy")
    assert "J per token" in answer.advice[1]
