"""The report names its command at every figure, marks a quick run, and its JSON is thin and has no NaN."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from edgectl.splitting.report import report_markdown, study_as_json, summary_text
from rl.evaluate import Interval
from tests.fakes.canned_study import canned_study, curve


def test_every_figure_names_its_command_and_is_linked(tmp_path: Path) -> None:
    study = canned_study()
    pictures = {key: tmp_path / "out" / f"{key}.svg" for key in ("figure-5", "figure-6", "figure-7")}
    text = report_markdown(study, pictures, tmp_path / "out")
    for key in pictures:
        assert f"]({key}.svg)\n\nMade by `edgectl reproduce splitting`." in text
    assert text.count("Made by") == 3
    assert "A quick run" not in text
    assert "| at the end | return |" in text  # long curves: their ends
    assert "| optimum | 3.230 |" in text
    assert "| steps | 100 | 200 | 300 |" in text  # short ones: all of it
    assert r"with \| without" in text
    assert max(map(len, (line for line in text.splitlines() if not line.startswith("|")))) <= 160


def test_a_quick_run_says_so(tmp_path: Path) -> None:
    assert "A quick run" in " ".join(report_markdown(canned_study("quick"), {}, tmp_path).split())


def test_findings_for_a_terminal() -> None:
    assert summary_text(canned_study()).splitlines()[1].endswith("reproduced")


def test_json_is_thin_and_strict() -> None:
    study = canned_study()
    section = study.sections[0]
    holed = replace(section.panels[0], curves=(replace(curve("NaN", 1), points=()),))
    nan = replace(curve("x", 1).points[0], value=Interval(float("nan"), None))
    holed = replace(holed, curves=(replace(holed.curves[0], points=(nan,)),))
    study = replace(study, sections=(replace(section, panels=(holed,)), *study.sections[1:]))
    document = json.loads(json.dumps(study_as_json(study), allow_nan=False))
    assert document["sections"][0]["panels"][0]["curves"][0]["points"][0]["value"]["mean"] is None
    violin = document["sections"][1]["violins"][0]
    assert violin["of"] == 600
    assert len(violin["values"]) == 200
    assert document["sections"][2]["choices"][0]["of"] == 30
