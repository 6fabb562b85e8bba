"""What `edgectl bench edgeshard` prints: paper, predicted, measured, and what the transport added."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from edgectl.edgeshard_bench import MeasuredRow, plan_of, runnable
from edgectl.edgeshard_report import describe_edgeshard, document, edgeshard_as_json
from edgectl.plan_measure import MeasuredStage
from planner.reproduction import table_iv


def measured(name: str, factor: float) -> MeasuredRow:
    row = runnable(table_iv(), (name,))[0]
    plan, model = plan_of(row)
    route = plan.routes[0]
    assert row.ours is not None
    stages = tuple(MeasuredStage(stage.device, 10.0, 2.0, None) for stage in route.stages)
    return MeasuredRow(row, plan, model.times(route, route.rows), factor * row.ours, 20, stages)


ROWS = [
    measured("7b edgeshard ms_per_token", 1.04),
    measured("70b edgeshard ms_per_token", 1.12),
    measured("7b cloud-edge-even tokens_per_s", 0.99),
]


def test_text() -> None:
    text = describe_edgeshard(ROWS)
    assert "ms_per_token, one session" in text
    assert "tokens_per_s, m micro-batches of r rows" in text
    assert [line.split()[2:] for line in text.splitlines() if line.startswith("llama2-7b   edgeshard")] == [
        ["3", "75.88", "75.09", "78.09", "+4.0%", "30.00", "6.00", "1.00"]
    ]
    assert "2 of 3 rows measured within 10% of the prediction" in text
    assert "furthest off is llama2-70b edgeshard ms_per_token with +12.0%" in text


def test_one_half_alone_and_no_stage_that_told() -> None:
    text = describe_edgeshard(ROWS[2:])
    assert "one session" not in text
    assert "longer than predicted" not in text


def test_a_document_says_where_and_when() -> None:
    found = document(ROWS, ["edgectl", "bench", "edgeshard"], datetime(2026, 11, 21, 15, tzinfo=timezone.utc))
    assert (found["command"], found["date"]) == ("edgectl bench edgeshard", "2026-11-21T15:00:00Z")
    assert {"cpu", "cores", "load_average", "real_time"} <= found["machine"].keys()
    assert found["machine"]["real_time"] is False
    assert [row["name"] for row in found["rows"]] == [row.name for row in ROWS]


def test_json_has_a_plans_names() -> None:
    found = json.loads(json.dumps(edgeshard_as_json(ROWS)))
    first, second, third = found["rows"]
    assert (first["quantity"], third["quantity"]) == ("ms_per_token", "tokens_per_s")
    assert first["difference"] == pytest.approx(0.04)
    assert (first["compute_ms"], first["hop_ms"], third["added_ms"]) == (30.0, 6.0, None)
    assert (third["micro_batches"], third["rows"]) == (8, 1)
    assert found["within_10_percent"] == 2
    assert found["largest_difference"] == pytest.approx(0.12)
    assert second["stages"][0] == {"device": "agx-0", "layers": [0, 2]}
