"""The report names every row, every split and what was not as it should be; its JSON is JSON."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from edgectl.adaptive_bench.report import HEADER, describe_comparison, document
from tests.fakes.adaptive_comparison import compared


def test_the_table_has_every_row_and_every_split(tmp_path: Path) -> None:
    text = describe_comparison(compared(tmp_path))
    lines = text.splitlines()
    assert lines[3].split("  ")[0] == HEADER[0]
    for number, name in enumerate(("static", "table", "policy")):
        row = lines[4 + number].split()
        assert row[0] == name
        assert row[-1] == "yes"
    for word in ("clean perplexity", "2: ", "4: ", "loss 0.000 to 0.300", "in hindsight"):
        assert word in text


def test_tokens_that_are_not_the_schedules_are_shown(tmp_path: Path) -> None:
    assert describe_comparison(compared(tmp_path, "table", lies=True)).splitlines()[4].split()[-1] == "no"


def test_the_document_is_json_and_whole(tmp_path: Path) -> None:
    found = document(compared(tmp_path), ["edgectl", "bench", "adaptive"], datetime.now(timezone.utc))
    written = json.loads(json.dumps(found, allow_nan=False))
    assert written["command"] == "edgectl bench adaptive"
    assert [row["controller"] for row in written["controllers"]] == ["static", "table", "policy"]
    assert set(written["static_ppl"]) == {"2", "4"}
    assert written["controllers"][1]["schedule"] == [[0, 4], [7, 2]]
    assert written["controllers"][1]["adaptive"] == {"moves": {"moved": 1}}
    assert written["controllers"][1]["is_smooth"] is False
    assert written["channel"]["loss_min_mean_max"][0] == 0.0
    assert written["channel"]["m_min_max"] == [0.9, 1.5]
