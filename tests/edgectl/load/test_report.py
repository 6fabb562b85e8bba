"""The report: its names are those of `edgectl plan`, it says why what is unknown is so, and keeps secrets out."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from agent.device.telemetry import TelemetryRecorder
from edgectl.load.client import Offer
from edgectl.load.generator import Lengths, Load
from edgectl.load.report import NO_POWER, Ran, document, redacted
from edgectl.load.stages import totals_of
from edgectl.load.summary import Objectives, Outcome
from edgectl.load.target import View
from planner.prediction import Prediction
from tests.edgectl.load.test_stages import rendered, two_devices
from tests.edgectl.load.test_summary import session

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
