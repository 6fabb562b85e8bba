"""The text has every row with its mark, the JSON every number, and both say what is out of memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgectl.reproduction_report import describe_reproduction, method_of, reproduction_as_json
from planner.reproduction import Reproduction, reproduce


@pytest.fixture(scope="module")
def found() -> Reproduction:
    return reproduce()


def test_the_text_has_rows_marks_and_studies(found: Reproduction) -> None:
    text = describe_reproduction(found)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        "llama2-7b edgeshard 75.88 75.09 -1.0% semi-predicted",
        "llama2-13b edge-solo - - - predicted out of memory in both",
        "llama2-13b cloud-edge-opt 243.45 333.37 +36.9% not reproducible",
        "llama2-7b edgeshard (m 8, r 1, ring) 52.45 59.32 +13.1%",
        "llama2-7b cloud-edge-even (m 8, r 1) 7.56 7.63 +0.9% predicted",
        "llama2-7b cloud-edge-opt 140.35 96.04 82.93 75.06 72.44",
        "memory charged printed - - -",
    ):
        assert any(line.startswith(expected) for line in lines), expected
    for title in ("Figure 7:", "Figure 8:", "Figure 9:", "Figure 10:", "Algorithm 1:"):
        assert any(line.startswith(title) for line in lines), title
    assert sum(row.cell.model in line and row.cell.note in line for row in found.rows for line in text.splitlines())
    assert "11 of 19 numbers are within 2% of the paper's" in text


def test_the_json_is_complete_and_finite(found: Reproduction) -> None:
    answer = json.loads(json.dumps(reproduction_as_json(found), allow_nan=False))
    assert len(answer["rows"]) == len(found.rows)
    row = next(row for row in answer["rows"] if (row["model"], row["method"]) == ("llama2-7b", "edgeshard"))
    assert row["ours"] == pytest.approx(75.09, abs=0.01)
    assert row["stages"] == [
        {"device": "agx-0", "layers": [0, 1]},
        {"device": "agx-1", "layers": [1, 6]},
        {"device": "cloud-0", "layers": [6, 32]},
    ]
    none = next(row for row in answer["rows"] if (row["model"], row["method"]) == ("llama2-70b", "edge-solo"))
    assert (none["paper"], none["ours"], none["fits"], none["stages"]) == (None, None, False, [])
    for study in answer["studies"]:
        assert all(len(line["values"]) == len(study["x"]) for line in study["series"])


def test_methods_name_what_their_number_rests_on(found: Reproduction) -> None:
    names = [(row.cell.model, row.cell.quantity, method_of(row)) for row in found.rows]
    assert len(set(names)) == len(names)


def test_the_document_shows_what_is_printed(found: Reproduction, request: pytest.FixtureRequest) -> None:
    document = Path(__file__).parents[2] / "docs" / "reproduction.md"
    text = document.read_text(encoding="utf-8")
    before, fence, after = text.partition("```text\n")
    printed, end, rest = after.partition("```\n")
    assert fence
    assert end
    now = describe_reproduction(found) + "\n"
    if request.config.getoption("--rewrite-golden"):
        document.write_text(f"{before}{fence}{now}{end}{rest}", encoding="utf-8")
        return
    assert printed == now, "`pytest tests/edgectl/test_reproduction_report.py --rewrite-golden` takes this over"
