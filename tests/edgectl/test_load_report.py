"""The report: its names are those of `edgectl plan`, its text says what its JSON does, and secrets stay out of it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from agent.device.telemetry import TelemetryRecorder
from edgectl.load_client import Offer
from edgectl.load_generator import Lengths, Load
from edgectl.load_report import NO_POWER, Ran, describe, document, redacted
from edgectl.load_stages import totals_of
from edgectl.load_summary import Objectives, Outcome
from edgectl.load_target import View
from planner.prediction import Prediction
from tests.edgectl.test_load_stages import rendered, two_devices
from tests.edgectl.test_load_summary import session

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
STATUS = {
    "plan": {"context": 128, "quantization": "int4"},
    "predicted": {"ms_per_token": 80.0, "tokens_per_s": 12.5, "measured_over_predicted": 1.1},
}


def ran(outcomes: list[Outcome], keys: int = 1, **views: Any) -> Ran:
    load = Load(prompt=Lengths.parse("10"), output=Lengths.parse("5"), context=128, rate_per_s=1.0, keys=keys)
    before = views.get("before", View("m", STATUS, {}))
    after = views.get("after", before)
    offer = Offer(load=load, model="m", sessions=len(outcomes))
    return Ran("http://a", offer, 2, Objectives(300.0, 150.0), outcomes, before, after, cpu_s=0.5)


def twelve() -> list[Outcome]:
    return [session(number, float(number), number + 0.2, 5, 0.1) for number in range(12)]


def measured() -> dict[str, Any]:
    a, b = TelemetryRecorder(), TelemetryRecorder()
    before = View("m", STATUS, totals_of(rendered(a=a, b=b)))
    two_devices(a, b, 40)
    after = View("m", STATUS, totals_of(rendered(a=a, b=b)))
    return document(ran(twelve(), before=before, after=after), ["edgectl", "bench"], NOW)


def test_a_report_is_json_and_says_when_where_and_how() -> None:
    report = json.loads(json.dumps(measured()))
    assert report["schema"] == 1
    assert report["date"] == "2026-01-02T03:04:05Z"
    assert report["command"] == "edgectl bench"
    assert report["machine"]["cores"] >= 1
    assert report["load"]["rate_per_s"] == 1.0
    assert report["load"]["prompt_tokens"] == "10"
    assert report["sessions"]["warm_up"] == 2
    assert report["plan"] == STATUS["plan"]


def test_quantities_have_the_names_of_a_prediction() -> None:
    report = measured()
    names = ("ms_per_token", "time_to_first_token_ms", "tokens_per_s", "joules_per_token")
    assert set(names) <= set(report)
    assert set(names) <= {field for field in Prediction.__slots__ if not field.startswith("_")}
    assert report["predicted"] == {"ms_per_token": 80.0, "tokens_per_s": 12.5}


def test_stages_and_the_time_of_a_token() -> None:
    report = measured()
    assert [stage["device"] for stage in report["stages"]] == ["a", "b"]
    # 40 runs of 4 ms in the time from the first session's due to the last one's end.
    assert report["stages"][0]["utilization"] == round(0.16 / 11.601, 4)
    assert report["token_time"]["step_ms"] == 20.0
    assert report["stages_unknown"] is None
    assert report["joules_per_token"] is None
    assert report["joules_per_token_unknown"] == NO_POWER


def test_a_strangers_server_is_measured_without_its_devices() -> None:
    report = document(ran(twelve(), before=View("m", unknown="it has no /edge/v1/status")), [], NOW)
    assert (report["stages"], report["token_time"], report["predicted"]) == ([], None, None)
    assert report["stages_unknown"] == "it has no /edge/v1/status"
    text = describe(report)
    assert "what the devices did is not known: it has no /edge/v1/status" in text
    assert "J per token: None (it has no /edge/v1/status)" in text


def test_the_text_says_it_all() -> None:
    text = describe(measured())
    for part in (
        "m at http://a: open loop, 1 sessions/s (poisson), seed 0",
        "10 sessions in 9.6 s after 2 of warm-up: 10 completed",
        "goodput 1.04 sessions/s, 100.0% met first token ≤ 300 ms and each token ≤ 150 ms",
        "a step of 20.00 ms = 10.00 compute + 3.00 waiting for a device + 3.00 wires",
        "4 tokens per step",
        f"J per token: None ({NO_POWER})",
        "p99 of 10 samples",
    ):
        assert part in text
    rows = [tuple(filter(None, line.split("  "))) for line in text.replace("   ", "  ").splitlines()]
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    assert ("ms to the first token", *["200.00"] * 5, "10") in cells
    assert ("ms per token", *["100.00"] * 5, "10") in cells
    assert ("ms per token", "80.00", "100.00", "+25.0%") in cells


def test_problems_keys_and_a_late_generator_are_told() -> None:
    outcomes = twelve()
    outcomes[5].end, outcomes[5].problem = "refused", "HTTP 429 queue_full"
    outcomes[6].sent_s += 1.0
    outcomes[7].max_tokens = 9
    text = describe(document(ran(outcomes, keys=2), [], NOW))
    for part in ("1 refused", "1 × HTTP 429 queue_full", "the generator was late", "1 answers ended before", "key  "):
        assert part in text


def test_a_server_that_falls_behind_is_told() -> None:
    text = "sessions came faster than they were served"
    # Due every second, served every two.
    slow = [session(number, float(number), 2.0 * number + 0.2, 5, 0.1) for number in range(60)]
    assert text in describe(document(ran(slow), [], NOW))
    quick = [session(number, float(number), number + 5.0, 5, 0.1) for number in range(60)]
    assert text not in describe(document(ran(quick), [], NOW))


def test_detail_is_one_object_per_session() -> None:
    report = document(ran(twelve()), [], NOW, detailed=True)
    assert len(report["detail"]) == 12
    assert report["detail"][3] == {
        "number": 3,
        "key": 1,
        "due_s": 3.0,
        "late_ms": 1.0,
        "prompt_tokens": 10,
        "tokens": 5,
        "end": "completed",
        "problem": "",
        "tries": 1,
        "time_to_first_token_ms": 200.0,
        "ms_per_token": 100.0,
        "end_to_end_ms": 601.0,
    }


def test_secrets_stay_out_of_the_report() -> None:
    command = ["edgectl", "--api-key", "red", "--api-key=blue", "--seed", "1"]
    assert redacted(command) == "edgectl --api-key … --api-key=… --seed 1"
