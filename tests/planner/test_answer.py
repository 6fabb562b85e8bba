"""make_plan: cases as data, EdgeShard's table, and what must hold for any cluster."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from planner.answer import Answer, PlanRequest, estimated_parts, make_plan
from planner.errors import Infeasible, UnknownName
from planner.prediction import Prediction
from planner.profile import PowerProfile
from planner.testbed import load_testbed
from planner.workload import Objective
from tests.fakes.plan_cases import load_cases, request_of
from tests.fakes.random_profiles import plain_device, plain_profile, random_profile, random_workload

CASES = load_cases()


@cache
def of_testbed(model: str, objective: Objective = "latency") -> Answer:
    testbed = load_testbed("edgeshard-paper", model)
    return make_plan(
        PlanRequest(profile=testbed.profile, workload=testbed.defaults, objective=objective, source=testbed.source)
    )


def shape(answer: Answer) -> list[tuple[str, int]]:
    return [(stage.device, len(stage.layers)) for stage in answer.plan.routes[0].stages]


# --- cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if "expected" in case], ids=lambda case: case["name"])
def test_expected_plans(case: dict[str, Any]) -> None:
    answer = make_plan(request_of(case))
    stages = answer.plan.routes[0].stages
    assert [[stage.device, stage.layers.start, stage.layers.stop] for stage in stages] == case["expected"]
    assert len(answer.plan.routes) == case.get("copies", 1)
    assert answer.optimal is case.get("optimal", True)
    if "says" in case:
        assert any(sentence.startswith(case["says"]) for sentence in answer.sentences)
    if "helps" in case:
        assert answer.advice[1].startswith(case["helps"])


@pytest.mark.parametrize("case", [case for case in CASES if "causes" in case], ids=lambda case: case["name"])
def test_expected_causes(case: dict[str, Any]) -> None:
    with pytest.raises(Infeasible) as refused:
        make_plan(request_of(case))
    for cause in case["causes"]:
        assert any(cause in given for given in refused.value.causes), refused.value.causes


# --- EdgeShard, arXiv 2405.14371, table IV ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "ms_per_token", "expected"),
    [
        ("llama2-7b", 75.09, [1, 5, 26]),
        ("llama2-13b", 176.09, [1, 22, 17]),
        ("llama2-70b", 3079.4, None),
    ],
)
def test_edgeshard_rows(model: str, ms_per_token: float, expected: list[int] | None) -> None:
    answer = of_testbed(model)
    assert answer.prediction.ms_per_token == pytest.approx(ms_per_token, rel=2e-4)
    assert answer.optimal
    assert answer.estimated
    if expected is not None:
        assert [layers for _, layers in shape(answer)] == expected


def test_baselines_of_the_7b_rows() -> None:
    baselines = of_testbed("llama2-7b").baselines
    expected = {"solo": 140.35, "cloud-edge-even": 227.39, "cloud-edge-opt": 140.35}
    for name, ms_per_token in expected.items():
        found = baselines[name]
        assert isinstance(found, Prediction)
        assert found.ms_per_token == pytest.approx(ms_per_token, rel=2e-4)
    even = baselines["cloud-edge-even"]
    assert isinstance(even, Prediction)
    assert even.tokens_per_s == pytest.approx(7.63, rel=2e-3)
    assert isinstance(of_testbed("llama2-70b").baselines["solo"], tuple)


def test_throughput_beats_the_published_rate_of_every_model() -> None:
    for model, published in (("llama2-7b", 52.45), ("llama2-13b", 10.45), ("llama2-70b", 1.25)):
        answer = of_testbed(model, "throughput")
        assert answer.prediction.tokens_per_s > published
        assert answer.prediction.tokens_per_s == pytest.approx(1e3 / answer.value)
        assert answer.optimal


# --- any cluster ------------------------------------------------------------------------------------------------------


def random_requests(count: int, objective: Objective) -> list[PlanRequest]:
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        profile, workload = random_profile(rng), random_workload(rng)
        if objective == "energy" and any(device.power is None for device in profile.devices):
            continue
        found.append(PlanRequest(profile=profile, workload=workload, objective=objective))
    return found


def plans(requests: list[PlanRequest]) -> list[Answer]:
    """Of those that fit."""
    found = []
    for request in requests:
        try:
            found.append(make_plan(request))
        except Infeasible:
            continue
    return found


@pytest.mark.parametrize("objective", ["latency", "throughput", "energy"])
def test_no_baseline_beats_a_plan_that_says_optimal(objective: Objective) -> None:
    answers = plans(random_requests(60, objective))
    assert len(answers) > 10
    for answer in answers:
        assert answer.lower_bound <= answer.value * (1 + 1e-12)
        for name, found in answer.baselines.items():
            if not isinstance(found, Prediction):
                continue
            value = {
                "latency": found.objective_ms,
                "throughput": 1e3 / found.tokens_per_s,
                "energy": found.joules_per_token,
            }[objective]
            assert value is not None
            assert value >= answer.lower_bound * (1 - 1e-9), name


@pytest.mark.parametrize("objective", ["latency", "throughput", "energy"])
def test_a_plan_fits_and_is_costed_as_it_is_predicted(objective: Objective) -> None:
    for answer in plans(random_requests(40, objective)):
        for allotment in answer.plan.allotments:
            assert allotment.memory_bytes <= allotment.memory_available_bytes
        found = {
            "latency": answer.prediction.objective_ms,
            "throughput": 1e3 / answer.prediction.tokens_per_s,
            "energy": answer.prediction.joules_per_token,
        }[objective]
        assert found == pytest.approx(answer.value, rel=1e-9)
        assert len(answer.plan.costs) == len(answer.plan.routes[0].stages)


def test_permuting_devices_behind_the_source_changes_nothing() -> None:
    for request in random_requests(30, "latency"):
        first, *others = request.profile.devices
        turned = replace(request, profile=replace(request.profile, devices=(first, *reversed(others))))
        values = [sorted(answer.value for answer in plans([each])) for each in (request, turned)]
        assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_more_memory_or_bandwidth_never_makes_the_optimum_worse() -> None:
    for request in random_requests(30, "latency"):
        answers = plans([request])
        if not answers:
            continue
        profile = request.profile
        roomier = tuple(replace(device, memory_bytes=2 * device.memory_bytes) for device in profile.devices)
        quicker = tuple(replace(link, bandwidth_bytes_per_s=2 * link.bandwidth_bytes_per_s) for link in profile.links)
        for better in (replace(profile, devices=roomier), replace(profile, links=quicker)):
            assert make_plan(replace(request, profile=better)).value <= answers[0].value * (1 + 1e-12)


def test_privacy_costs_what_it_costs_and_never_less() -> None:
    for request in random_requests(30, "latency"):
        try:
            free = make_plan(replace(request, privacy="none")).value
        except Infeasible:
            continue
        for tighter in plans([request, replace(request, privacy="trusted-ends")]):
            assert tighter.value >= free * (1 - 1e-12)


def test_whatever_does_not_fit_has_causes() -> None:
    refused = 0
    for request in random_requests(60, "latency"):
        try:
            make_plan(request)
        except Infeasible as problem:
            refused += bool(problem.causes)
    assert refused == 60 - len(plans(random_requests(60, "latency")))


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_free_source_is_the_best_however_close_it_is() -> None:
    near = plain_device("b", layer_ms=2.0 * (1 - 5e-7), memory_mib=100)
    request = replace(request_of(CASES[0]), source=None, privacy="none")
    for devices, source in (
        ((plain_device("a", layer_ms=2.0, memory_mib=100), near), "b"),
        ((replace(near, name="a"), near), "a"),
    ):
        answer = make_plan(replace(request, profile=plain_profile(*devices)))
        assert answer.plan.routes[0].source == source
        assert answer.optimal


def test_no_simple_rule_beats_a_plan_on_a_shared_machine() -> None:
    """The search takes stages of one machine for distinct servers: here the source alone is better than its choice."""
    rng = random.Random(964)
    profile, workload = random_profile(rng), random_workload(rng)
    answer = make_plan(PlanRequest(profile=profile, workload=workload, objective="throughput", privacy="trusted-ends"))
    solo = answer.baselines["solo"]
    assert isinstance(solo, Prediction)
    assert solo.tokens_per_s == pytest.approx(answer.prediction.tokens_per_s)
    assert answer.prediction.tokens_per_s == pytest.approx(1e3 / answer.value)


@pytest.mark.parametrize(
    ("objective", "unit"), [("latency", "ms per token"), ("throughput", "tokens/s"), ("energy", "J per token")]
)
def test_not_splitting_is_told_in_what_the_objective_counts(objective: Objective, unit: str) -> None:
    device = plain_device("a", memory_mib=100, power=PowerProfile(idle_w=5, decode_w=9, prefill_w=9, source="sysfs"))
    request = replace(request_of(CASES[0]), objective=objective, source=None)
    answer = make_plan(replace(request, profile=plain_profile(device, replace(device, name="b"), num_layers=1)))
    assert re.search(rf"splitting does not pay: for {objective} a alone .* [\d.]+ {unit}$", answer.sentences[0])


def test_copies_share_the_source_and_nothing_else() -> None:
    case = next(case for case in CASES if "copies" in case)
    answer = make_plan(request_of(case))
    routes = answer.plan.routes
    assert {route.source for route in routes} == {"a"}
    others = [stage.device for route in routes for stage in route.stages[1:]]
    assert sorted(others) == ["b", "c"]
    assert answer.plan.allotment("a").slots == answer.placement.sessions * 2
    assert answer.plan.allotment("b").slots == answer.placement.sessions
    assert answer.prediction.stages[0].memory_bytes == answer.plan.allotment("a").memory_bytes
    assert answer.prediction.tokens_per_s == pytest.approx(1e3 / answer.value)
    assert any("copies that differ cannot exceed" in sentence for sentence in answer.sentences)


def test_a_device_alone_is_told_that_it_is() -> None:
    answer = make_plan(request_of({"devices": [{"name": "a", "layer_ms": 2, "memory_mib": 100}]}))
    assert answer.sentences == ("a is the only device: there is nothing to split over",)


def test_baselines_begin_at_the_source_that_is_named() -> None:
    answer = make_plan(request_of(next(case for case in CASES if case["name"] == "the source is named")))
    solo = answer.baselines["solo"]
    assert isinstance(solo, Prediction)
    assert [stage.device for stage in solo.stages] == ["b"]


def test_a_batch_reserves_memory_for_itself() -> None:
    request = replace(request_of(CASES[0]), batch=7)
    answer = make_plan(request)
    assert answer.sessions == 7
    assert all(allotment.slots == 7 for allotment in answer.plan.allotments)


def test_trades_rise_in_both() -> None:
    testbed = load_testbed("edgeshard-paper", "llama2-13b")
    answer = make_plan(
        PlanRequest(
            profile=testbed.profile,
            workload=testbed.defaults,
            objective="throughput",
            source=testbed.source,
            pareto=True,
        )
    )
    rounds = [trade.round_ms for trade in answer.pareto]
    rates = [trade.tokens_per_s for trade in answer.pareto]
    assert len(rates) > 1
    assert rounds == sorted(rounds)
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(answer.prediction.tokens_per_s)


def test_estimated_parts_are_those_the_plan_uses() -> None:
    answer = of_testbed("llama2-7b")
    parts = estimated_parts(answer.model, answer.plan.routes)
    assert set(parts) >= {"agx-0", "agx-1", "cloud-0", "agx-0→agx-1", "agx-1→cloud-0", "cloud-0→agx-0"}
    assert not any("nx" in part.replace("agx", "") for part in parts)
    assert not make_plan(request_of(CASES[0])).estimated


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"batch": 0}, "batch must be at least 1"), ({"replicas": True}, "replicas raise throughput")],
)
def test_requests_that_contradict_themselves(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(request_of(CASES[0]), **changes)


def test_unknown_source() -> None:
    with pytest.raises(UnknownName, match="unknown device 'aa'"):
        make_plan(replace(request_of(CASES[0]), source="aa"))
