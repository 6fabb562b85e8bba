"""`edgectl reproduce splitting --quick` from the command line: the whole study, small; and again from what it kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FIGURES = ("figure-3", "figure-5", "figure-5-model", "figure-6", "figure-7", "figure-8", "figure-9")


def study(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    code = "from edgectl.cli import main; main()"
    command = [sys.executable, "-c", code, "reproduce", "splitting", "--quick", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.cluster
@pytest.mark.timeout(290)
def test_the_quick_study_writes_its_report_and_resumes(tmp_path: Path) -> None:
    first = study(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "PPO's share of the head-room" in first.stdout
    pictures = {path.stem for path in tmp_path.glob("*.svg")}
    assert set(FIGURES) | {"equal-evaluations", "harder-world"} == pictures
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert report.count("Made by `edgectl reproduce splitting --quick`.") == len(pictures)
    data = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert data["size"] == "quick"

    refused = study(tmp_path)
    assert refused.returncode != 0
    assert "--resume goes on with it" in refused.stderr

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "quick" / "runs").glob("*.json")}
    lost = min(kept)
    lost.unlink()
    again = study(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(" seed ") == 1  # the run that was lost, and no other
    assert {path: path.stat().st_mtime_ns for path in kept if path != lost} == {
        path: at for path, at in kept.items() if path != lost
    }
