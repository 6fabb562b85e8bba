"""--explain: every sentence says something that is true of the plan."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from planner.answer import Answer, PlanRequest, make_plan
from planner.explain import explain_plan
from planner.testbed import load_testbed
from planner.types import LayerRange
from tests.fakes.plan_cases import load_cases, request_of

CASES = {case["name"]: case for case in load_cases()}


def answer_for(model: str, **changes: Any) -> Answer:
    testbed = load_testbed("edgeshard-paper", model)
    request = PlanRequest(profile=testbed.profile, workload=testbed.defaults, source=testbed.source)
    return make_plan(replace(request, **changes))


def line(text: tuple[str, ...], beginning: str) -> str:
    found = [sentence for sentence in text if sentence.startswith(beginning)]
    assert len(found) == 1, text
    return found[0]


def test_the_7b_row() -> None:
    answer = answer_for("llama2-7b")
    text = explain_plan(answer)
    assert "the source, with the prompt and the embedding" in line(text, "agx-0 [0, 1)")
    assert "the fastest" in line(text, "cloud-0 [6, 32)")
    assert "its memory is full" in line(text, "cloud-0 [6, 32)")
    # One layer less on the cloud costs the difference of two layers, and one more does not fit.
    assert "a layer more on agx-1: +2.65 ms, a layer more on cloud-0: does not fit" in line(text, "agx-1 [1, 6)")
    assert "8.60 ms per layer" in line(text, "not used: nx-0 and 1 like it")
    assert "no further stage of this kind" in line(text, "not used: agx-2 and 9 like it")
    assert "KV cache for 8 sessions of 128 tokens" in line(text, "memory counts")
    assert "embedding" in line(text, "memory counts")
    assert "the search is exact" in line(text, "bound")
    assert "agx-1→cloud-0" in line(text, "estimates")


def test_what_is_lacking_is_what_the_formula_says() -> None:
    answer = answer_for("llama2-13b")
    lacking = int(re.findall(r"one more layer lacks (\d+) MiB", line(explain_plan(answer), "cloud-0 "))[0])
    stage = answer.prediction.stages[-1]
    bigger = LayerRange(stage.layers.start - 1, stage.layers.stop)
    missing = answer.model.memory_bytes("cloud-0", bigger, answer.placement.sessions) - stage.memory_available_bytes
    assert lacking == -(-missing // (1 << 20))


@pytest.mark.parametrize(
    ("objective", "text"),
    [("latency", "(time to first token + 95 ×"), ("throughput", "most tokens per second"), ("energy", "least energy")],
)
def test_every_objective_is_told(objective: Any, text: str) -> None:
    assert text in explain_plan(answer_for("llama2-7b", objective=objective))[0]


def test_every_case_is_explained() -> None:
    for case in CASES.values():
        if "expected" not in case:
            continue
        text = explain_plan(make_plan(request_of(case)))
        for device, start, stop in case["expected"]:
            line(text, f"{device} [{start}, {stop}): ")
        used = {device for device, _, _ in case["expected"]}
        if case.get("copies", 1) == 1:
            for entry in case["devices"]:
                assert entry["name"] in used or any(
                    sentence.startswith("not used: ") and entry["name"] in sentence for sentence in text
                )
        assert line(text, "estimates: none")


def test_a_gap_is_told() -> None:
    shared = make_plan(request_of(CASES["throughput on one machine: two devices of it take turns, so do not split"]))
    assert f"by more than {shared.gap:.2%}" in line(explain_plan(shared), "bound")


def test_long_routes_are_cut() -> None:
    text = explain_plan(answer_for("llama2-70b"))
    assert len(text) < 24
