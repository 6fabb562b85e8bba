"""The plan as text: every number that is promised, estimates marked."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from edgectl.plan_measure import Measured, MeasuredStage
from edgectl.plan_report import describe_measured, describe_plan, measured_as_json
from planner.answer import Answer, PlanRequest, make_plan
from planner.testbed import load_testbed
from tests.fakes.plan_cases import load_cases, request_of

CASES = {case["name"]: case for case in load_cases()}
FAST = "a fast neighbour takes all but the first layer"


@cache
def of_testbed(model: str, **changes: Any) -> Answer:
    testbed = load_testbed("edgeshard-paper", model)
    request = PlanRequest(profile=testbed.profile, workload=testbed.defaults, source=testbed.source)
    return make_plan(replace(request, **changes))


@cache
def of_case(name: str) -> Answer:
    return make_plan(request_of(CASES[name]))


def rows(text: str, beginning: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(beginning)]


def test_the_7b_row_of_edgeshard() -> None:
    text = describe_plan(of_testbed("llama2-7b"), "testbed edgeshard-paper")
    assert text.startswith("llama2-7b in fp32 on testbed edgeshard-paper, for latency\n")
    assert rows(text, "cloud-0 ") == [
        ["cloud-0", "[6,", "32)", "21,412", "MiB", "~22,119", "MiB", "~44.02", "~0.03", "~0.23"]
    ]
    assert "predicted: ~75.09 ms per token, ~75.1 ms to the first token" in text
    assert rows(text, "this plan")[0][:4] == ["this", "plan", "~75.09", "~77.65"]
    assert rows(text, "solo")[0][:2] == ["solo", "~140.35"]
    assert rows(text, "cloud-edge-even")[0][1:3] == ["~227.39", "~7.63"]
    assert "limited by compute on cloud-0: 44.0 of 75.1 ms per token (59%) (estimate)" in text
    assert "proven optimal: the bound is 75.09 ms per token, gap 0 (estimate)" in text
    assert "~ rests on an estimate, not a measurement: agx-0, agx-1, cloud-0" in text


def test_measured_numbers_carry_no_mark() -> None:
    text = describe_plan(of_case(FAST))
    assert "~" not in text
    assert "(estimate)" not in text
    assert "predicted: 12.50 ms per token" in text


def test_baselines_that_do_not_fit_say_why() -> None:
    (row,) = rows(describe_plan(of_testbed("llama2-70b")), "solo")
    assert row[1:3] == ["-", "-"]
    assert "agx-0:" in row
    assert "short" in row


def test_a_sentence_when_splitting_does_not_pay() -> None:
    text = describe_plan(of_case("equal devices with room: do not split"))
    assert "splitting does not pay: for latency a alone is as good as any split, 13.0 ms per token" in text


def test_copies_are_listed() -> None:
    answer = of_case("replicas: each copy has a device of its own behind the source")
    text = describe_plan(answer)
    assert "2 copies share a:\n  a 1, b 5\n  a 1, c 5\n" in text
    assert "with 2 copies of" in text
    assert f"{answer.prediction.tokens_per_s:.2f} tokens/s" in text


def test_a_gap_is_shown() -> None:
    text = describe_plan(of_case("throughput on one machine: two devices of it take turns, so do not split"))
    assert "tokens/s, gap " in text
    assert "proven" not in text


def test_trades_are_a_table() -> None:
    answer = of_testbed("llama2-13b", objective="throughput", pareto=True)
    text = describe_plan(answer)
    assert "no other placement is better in both" in text
    assert "1 micro-batches" not in text
    assert f"~{answer.pareto[0].round_ms:.2f}" in text


def test_long_routes_are_short_in_the_table() -> None:
    text = describe_plan(of_testbed("llama2-70b"))
    assert "agx-1…agx-8 8×9" in "\n".join(line for line in text.splitlines() if line.startswith("communication"))
    assert max(map(len, text.splitlines())) < 200


def test_predicted_beside_measured() -> None:
    answer = of_case(FAST)
    measured = Measured(
        ms_per_token=13.2,
        time_to_first_token_ms=12.0,
        tokens_per_s=1e3 / 13.2,
        stages=(MeasuredStage("a", 5.5, 1.0, 0.0), MeasuredStage("b", None, None, None)),
        generations_ms=(13.2,),
    )
    text = describe_measured(answer, measured)
    assert rows(text, "ms per token")[0][3:] == ["12.50", "13.20", "+5.6%"]
    assert rows(text, "a compute ms")[0][3:] == ["5.00", "5.50", "+10.0%"]
    assert rows(text, "b compute ms")[0][3:] == ["6.00", "-"]
    found = measured_as_json(measured)
    assert found["ms_per_token"] == pytest.approx(13.2)
    assert set(found) == {"ms_per_token", "time_to_first_token_ms", "tokens_per_s", "stages"}
