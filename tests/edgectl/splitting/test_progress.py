"""Lines where nobody watches bars, bars where somebody does, and times that add up over interruptions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgectl.splitting.progress import PartClock, watching
from edgectl.splitting.runs import RunSpec
from tests.fakes.canned_evidence import result


def test_a_line_per_run(capsys: pytest.CaptureFixture[str]) -> None:
    spec = RunSpec(steps=1000)
    with watching(3, 1) as watcher:
        watcher.began(spec)
        watcher.advanced(spec, 500, 1000)
        watcher.ended(spec, result(2.5, spec))
    assert capsys.readouterr().err == "[2/3] ppo authors A 9 surrogate seed 0: 2.500 after 1 s\n"


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    spec = RunSpec(steps=1000)
    with watching(2, 0) as watcher:
        watcher.began(spec)
        watcher.advanced(spec, 500, 1000)
        watcher.ended(spec, result(2.5, spec))
    assert "all runs" in capsys.readouterr().err


def test_parts_are_summed_over_interruptions_and_resuming_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps({"training": 100.0}))
    clock = PartClock(path)
    with clock.part("training"):
        pass  # found that all is done
    with pytest.raises(KeyboardInterrupt), clock.part("training", least_s=0.0):
        raise KeyboardInterrupt
    with clock.part("grid"):
        pass
    kept = PartClock(path).seconds
    assert kept == clock.seconds
    assert 100.0 < kept["training"] < 101.0
    assert kept["grid"] >= 0.0


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', "{"])
def test_damaged_times_begin_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "seconds.json").write_text(text)
    assert PartClock(tmp_path / "seconds.json").seconds == {}
