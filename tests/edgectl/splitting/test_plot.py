"""One picture per section that has one, the same bytes each time, and a friendly word where matplotlib is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.splitting.plot import plot_study
from tests.fakes.canned_study import canned_study

SECTIONS = canned_study().sections


def test_a_picture_per_section_the_same_each_time(tmp_path: Path) -> None:
    written = plot_study(SECTIONS, tmp_path / "new", "svg")
    assert {key: path.name for key, path in written.items()} == {
        f"figure-{number}": f"figure-{number}.svg" for number in (5, 6, 7)
    }
    again = plot_study(SECTIONS, tmp_path / "again", "svg")
    for key, path in written.items():
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert len(text) < 200_000
        assert path.read_bytes() == again[key].read_bytes()
    assert "optimum 3.23" in written["figure-5"].read_text(encoding="utf-8")


def test_png(tmp_path: Path) -> None:
    for path in plot_study(SECTIONS[1:2], tmp_path, "png").values():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*file"):
        plot_study(SECTIONS, tmp_path / "file", "svg")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandFailure, match="matplotlib") as refused:
        plot_study(SECTIONS, tmp_path, "svg")
    assert refused.value.exit_code == ExitCode.UNAVAILABLE
