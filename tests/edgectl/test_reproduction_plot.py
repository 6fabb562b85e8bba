"""One picture per figure, the same bytes each time, and a friendly word where matplotlib is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.reproduction_plot import plot_reproduction
from planner.paper_methods import Cell
from planner.reproduction import Reproduced, Reproduction, Series, Study

ROW = Reproduced(Cell(model="m", method="edgeshard", quantity="ms_per_token", paper=2.0), 2.5, None, fits=True)
RATE = Reproduced(Cell(model="m", method="edgeshard", paper=2.0), 2.5, None, fits=True)
LINES = Study("figure 7", "lines", "Mbit/s", ("1", "5"), "ms", (Series("a", (1.0, 2.0)), Series("b", (None, 50.0))))
BARS = Study("figure 9", "bars", "source", ("x", "y"), "ms", (Series("a", (1.0, None)), Series("b", (None, 3.0))))


@pytest.fixture(scope="module")
def found() -> Reproduction:
    return Reproduction("a paper", (ROW, RATE), (LINES, BARS, BARS))


def test_a_picture_per_figure_the_same_each_time(found: Reproduction, tmp_path: Path) -> None:
    written = plot_reproduction(found, tmp_path / "new", "svg")
    assert [path.name for path in written] == ["table-iv.svg", "figure-7.svg", "figure-9.svg"]
    assert all(path.read_text(encoding="utf-8").startswith("<?xml") for path in written)
    again = plot_reproduction(found, tmp_path / "again", "svg")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_png(found: Reproduction, tmp_path: Path) -> None:
    for path in plot_reproduction(found, tmp_path, "png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written(found: Reproduction, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--plot .*file"):
        plot_reproduction(found, tmp_path / "file", "svg")


def test_without_matplotlib(found: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandFailure, match="matplotlib") as refused:
        plot_reproduction(found, tmp_path, "svg")
    assert refused.value.exit_code == ExitCode.UNAVAILABLE
    assert "edgectl[plot]" in refused.value.hint
