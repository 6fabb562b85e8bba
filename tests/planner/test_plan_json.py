"""Plans as JSON: the promised keys, what is read back, and files that are wrong in one place."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from planner.answer import Answer, make_plan
from planner.errors import BadPlan, Infeasible
from planner.plan_json import MOST_BYTES, answer_as_json, parse_plan
from planner.types import Plan
from tests.fakes.plan_cases import load_cases, request_of

CASES = {case["name"]: case for case in load_cases()}
RELAY = "relay: the way over c is quicker than the slow link"


@cache
def answer_of(name: str = RELAY) -> Answer:
    return make_plan(request_of(CASES[name]))


def text_of(name: str = RELAY) -> str:
    return json.dumps(answer_as_json(answer_of(name)))


def test_the_promised_keys() -> None:
    found: dict[str, Any] = answer_as_json(answer_of())
    promised = {"model", "objective", "stages", "predicted", "baselines", "routes", "lower_bound", "gap", "optimal"}
    assert promised | {"advice"} <= set(found)
    assert set(found["stages"][0]) >= {
        "device",
        "layers",
        "memory_bytes",
        "memory_available_bytes",
        "compute_ms",
        "hop_ms",
        "wait_ms",
    }
    assert set(found["predicted"]) == {"ms_per_token", "tokens_per_s", "time_to_first_token_ms", "joules_per_token"}
    assert set(found["routes"][0]) == {"stages", "micro_batches", "rows"}
    assert [stage["layers"] for stage in found["stages"]] == [[0, 1], [1, 2], [2, 6]]
    assert set(found["baselines"]) >= {
        "solo",
        "even",
        "cloud-edge-even",
        "cloud-edge-opt",
        "memory-proportional",
        "communication-blind",
        "algorithm-1",
        "algorithm-2",
    }
    for baseline in found["baselines"].values():
        assert set(baseline) in ({"ms_per_token", "tokens_per_s"}, {"infeasible"})
    assert found["optimal"] is True
    assert found["predicted"]["joules_per_token"] is None, "no device told its power"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "expected" in case])
def test_what_is_written_is_read_back(name: str) -> None:
    plan = answer_of(name).plan
    read = parse_plan(text_of(name))
    assert rounded(read) == rounded(plan)


def rounded(plan: Plan) -> Plan:
    """Numbers as the file has them."""
    predicted = {key: float(f"{value:.9g}") for key, value in plan.predicted.items()}
    costs = tuple(
        replace(
            cost,
            compute_ms=float(f"{cost.compute_ms:.9g}"),
            hop_ms=float(f"{cost.hop_ms:.9g}"),
            wait_ms=float(f"{cost.wait_ms:.9g}"),
        )
        for cost in plan.costs
    )
    return replace(plan, predicted=predicted, costs=costs)


def test_it_is_json_of_finite_numbers() -> None:
    for name, case in CASES.items():
        if "expected" in case:
            json.dumps(answer_as_json(answer_of(name)), allow_nan=False)


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("model",), None, "model"),
        (("model",), 3, "model"),
        (("quantization",), "int3", "quantization"),
        (("codec",), "zip", "codec"),
        (("context",), 0, "context"),
        (("context",), 12.5, "context"),
        (("context",), True, "context"),
        (("block_size",), -1, "block_size"),
        (("routes",), [], "routes"),
        (("routes", 0, "stages"), [], "routes[0].stages"),
        (("routes", 0, "rows"), 0, "routes[0].rows"),
        (("routes", 0, "micro_batches"), "2", "routes[0].micro_batches"),
        (("routes", 0, "stages", 0, "device"), "", "routes[0].stages[0].device"),
        (("routes", 0, "stages", 0, "device"), "z", "routes[0].stages[0].device"),
        (("routes", 0, "stages", 0, "layers"), [0], "routes[0].stages[0].layers"),
        (("routes", 0, "stages", 0, "layers"), [0, 1, 2], "routes[0].stages[0].layers"),
        (("routes", 0, "stages", 0, "layers", 1), 0, "routes[0].stages[0].layers"),
        (("routes", 0, "stages", 0, "layers", 0), -1, "routes[0].stages[0].layers[0]"),
        (("routes", 0, "stages", 1, "layers", 0), 2, "routes[0].stages[1].layers"),
        (("routes", 0, "stages", 2, "layers", 0), 1, "routes[0].stages[2].layers"),
        (("routes", 0, "stages", 2, "layers", 0), 3, "routes[0].stages[2].layers"),
        (("routes", 0, "stages", 2, "layers", 1), 1 << 40, "routes[0].stages[2].layers[1]"),
        (("routes", 0, "stages", 2, "layers", 1), 7, "routes[0].stages[2].layers"),
        (("allotments", 0, "slots"), 0, "allotments[0].slots"),
        (("allotments", 0, "memory_bytes"), -1, "allotments[0].memory_bytes"),
        (("allotments", 0, "memory_bytes"), 1.5, "allotments[0].memory_bytes"),
        (("allotments", 0, "resident"), [], "allotments[0].resident"),
        (("allotments", 1, "device"), "a", "allotments[1].device"),
        (("predicted", "ms_per_token"), -1, "predicted.ms_per_token"),
        (("predicted", "ms_per_token"), "fast", "predicted"),
        (("stages", 0, "compute_ms"), -1, "stages[0].compute_ms"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[str | int, ...], value: object, place: str) -> None:
    found: Any = json.loads(text_of())
    at = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(BadPlan) as refused:
        parse_plan(json.dumps(found))
    assert refused.value.place.startswith(place)
    assert place in str(refused.value)


@pytest.mark.parametrize(
    "name", ["model", "quantization", "block_size", "boundary", "codec", "context", "routes", "allotments"]
)
def test_a_missing_field_is_named(name: str) -> None:
    found = json.loads(text_of())
    del found[name]
    with pytest.raises(BadPlan, match=name):
        parse_plan(json.dumps(found))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\x00", "[" * 100_000, " " * (MOST_BYTES + 1)])
def test_what_is_no_plan_at_all(text: str) -> None:
    with pytest.raises(BadPlan):
        parse_plan(text)


def test_routes_may_begin_on_devices_of_their_own() -> None:
    name = next(name for name, case in CASES.items() if "copies" in case)
    found = json.loads(text_of(name))
    found["routes"][1]["stages"][0]["device"] = "b"
    found["allotments"][1]["resident"] = [[0, 6]]
    assert [route.source for route in parse_plan(json.dumps(found)).routes] == ["a", "b"]


def test_routes_that_do_not_belong_together() -> None:
    name = next(name for name, case in CASES.items() if "copies" in case)
    found = json.loads(text_of(name))
    found["routes"][1]["stages"][1]["layers"] = [1, 5]
    with pytest.raises(BadPlan, match=r"routes\[1\]\.stages: cover"):
        parse_plan(json.dumps(found))


def test_layers_that_are_not_resident() -> None:
    found = json.loads(text_of())
    found["allotments"][2]["resident"] = [[0, 2]]
    with pytest.raises(BadPlan, match="are not resident on"):
        parse_plan(json.dumps(found))


def test_unknown_keys_are_left_alone() -> None:
    found = json.loads(text_of())
    found["later"] = {"versions": "add keys"}
    assert parse_plan(json.dumps(found)) == parse_plan(text_of())


def test_cases_are_feasible_or_not_as_they_say() -> None:
    for case in CASES.values():
        if "causes" in case:
            with pytest.raises(Infeasible):
                make_plan(request_of(case))
