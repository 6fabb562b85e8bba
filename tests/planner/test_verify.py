"""--verify: agrees with right plans, and notices wrong ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from planner.answer import Answer, PlanRequest, make_plan
from planner.errors import Infeasible
from planner.prediction import predict
from planner.problem import Segment
from planner.types import LayerRange, Route, Stage
from planner.verify import Check, VerifyReport, verify_plan
from planner.workload import Objective
from tests.fakes.plan_cases import load_cases, request_of
from tests.fakes.random_profiles import random_profile, random_workload

CASES = {case["name"]: case for case in load_cases()}
RELAY = "relay: the way over c is quicker than the slow link"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "expected" in case])
def test_cases_are_verified(name: str) -> None:
    report = verify_plan(make_plan(request_of(CASES[name])))
    assert report.ok, report.differences


@pytest.mark.parametrize(("objective", "count"), [("latency", 25), ("throughput", 12), ("energy", 25)])
def test_random_plans_are_verified(objective: Objective, count: int) -> None:
    verified = 0
    for seed in range(count):
        rng = random.Random(seed)
        profile, workload = random_profile(rng, max_devices=3, max_layers=6), random_workload(rng)
        if objective == "energy" and any(device.power is None for device in profile.devices):
            continue
        try:
            answer = make_plan(PlanRequest(profile=profile, workload=workload, objective=objective))
        except Infeasible:
            continue
        report = verify_plan(answer)
        assert report.ok, (seed, report.differences)
        verified += 1
    assert verified > 3


# --- planted errors ---------------------------------------------------------------------------------------------------


@cache
def right(name: str = RELAY) -> Answer:
    return make_plan(request_of(CASES[name]))


def dearer_but_optimal(answer: Answer) -> Answer:
    """The planner stopped too early and says optimal."""
    cost = answer.placement.cost * 1.01
    return replace(answer, placement=replace(answer.placement, cost=cost, lower_bound=cost))


def another_route(answer: Answer) -> Answer:
    """Predicted for one route, planned another."""
    route = Route((Stage("a", LayerRange(0, 2)), Stage("c", LayerRange(2, 3)), Stage("b", LayerRange(3, 6))))
    return replace(answer, plan=replace(answer.plan, routes=(route,)))


def wrong_time(answer: Answer) -> Answer:
    return replace(answer, prediction=replace(answer.prediction, ms_per_token=answer.prediction.ms_per_token + 0.01))


def wrong_first_token(answer: Answer) -> Answer:
    first_ms = answer.prediction.time_to_first_token_ms
    return replace(answer, prediction=replace(answer.prediction, time_to_first_token_ms=first_ms * 1.001))


def wrong_memory(answer: Answer) -> Answer:
    first, *others = answer.prediction.stages
    stages = (replace(first, memory_bytes=first.memory_bytes + 4096), *others)
    return replace(answer, prediction=replace(answer.prediction, stages=stages))


@pytest.mark.parametrize(
    ("plant", "text"),
    [
        (dearer_but_optimal, "by HiGHS"),
        (another_route, "ms per token is"),
        (wrong_time, "ms per token is"),
        (wrong_first_token, "ms to the first token is"),
        (wrong_memory, "bytes on a is"),
    ],
)
def test_a_wrong_answer_is_noticed(plant: Callable[[Answer], Answer], text: str) -> None:
    report = verify_plan(plant(right()))
    assert not report.ok
    assert any(text in difference for difference in report.differences), report.differences


def test_a_rate_that_is_too_low_to_be_the_best_is_noticed() -> None:
    answer = right("throughput: equal devices share evenly what latency leaves on one")
    report = verify_plan(dearer_but_optimal(answer))
    assert any("no batch and placement exceeds" in difference for difference in report.differences)


@pytest.mark.parametrize(
    "name",
    [
        "replicas: each copy has a device of its own behind the source",
        "replicas: the source's layer is what both copies wait for",
        "throughput: memory for one session alone, and a second device too slow to help",
    ],
)
def test_a_rate_is_noticed_for_every_batch_and_copy(name: str) -> None:
    report = verify_plan(dearer_but_optimal(right(name)))
    assert any("no batch and placement exceeds" in difference for difference in report.differences)


def test_a_set_of_devices_that_idles_on_less_is_noticed() -> None:
    """Two devices, the best of all that idle on 52 W or more; one of them alone takes a fifth."""
    case = CASES["energy: the slow thrifty device does it alone"]
    a, b = case["devices"]
    answer = make_plan(request_of({**case, "devices": [a, {**b, "load_w": 60}]}))
    segments = (Segment(0, 0, 1), Segment(1, 1, 6))
    cost = answer.model.energy_problem(52.0).cost_of(segments)
    route = answer.model.route(segments)
    wrong = replace(
        answer,
        plan=replace(answer.plan, routes=(route,)),
        prediction=predict(answer.model, route, 1),
        placement=replace(answer.placement, segments=segments, routes=(route,), cost=cost, lower_bound=cost),
    )
    assert answer.value < 0.3 * cost
    (difference,) = verify_plan(wrong).differences
    assert "2 W idle, take no less either" in difference


def test_an_energy_that_is_too_high_to_be_the_least_is_noticed() -> None:
    answer = right("energy: the slow thrifty device does it alone")
    report = verify_plan(dearer_but_optimal(answer))
    assert any("J per token" in difference for difference in report.differences)


def test_a_bound_that_is_too_high_is_noticed() -> None:
    """bounded, with the optimum outside of the gap."""
    placement = right().placement
    outside = replace(placement, cost=placement.cost * 1.05, lower_bound=placement.cost * 1.02)
    report = verify_plan(replace(right(), placement=outside))
    assert any("within our gap" in difference for difference in report.differences)


def test_the_report_in_words_and_as_json() -> None:
    report = VerifyReport((Check("ms", 1.0, 1.0), Check("tokens/s", 2.0, 3.0)), (("it fits", False),), ("the rest",))
    assert report.describe().splitlines() == [
        "verified: ms 1",
        "DIFFERS: tokens/s 2, 3 the other way",
        "NOT SO: it fits",
        "not verified: the rest",
    ]
    assert report.as_json()["ok"] is False
    assert len(report.differences) == 2


def test_endless_times_agree_with_endless_times_only() -> None:
    inf = float("inf")
    assert Check("ms", inf, inf).agrees
    assert not Check("ms", inf, 1.0).agrees
    assert Check("ms", 0.0, 0.0).agrees
