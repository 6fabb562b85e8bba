"""The picture of a load: its distribution, its files, and life without matplotlib."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from edgectl.load.plot import plot_load, steps_of
from edgectl.load.report import document
from edgectl.output import CommandFailure
from tests.edgectl.load.test_report import NOW, ran, twelve


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1e6))
def test_a_step_says_which_share_is_at_most_so_long(samples: list[float], at: float) -> None:
    ordered, shares = steps_of(samples)
    below = sum(value <= at for value in ordered)
    assert (shares[below - 1] if below else 0.0) == pytest.approx(np.mean(np.array(samples) <= at))


def test_svg_and_png(tmp_path: Path) -> None:
    outcomes = twelve()
    report = document(ran(outcomes), [], NOW)
    plot_load(report, outcomes, tmp_path / "load.svg")
    plot_load(report, outcomes, tmp_path / "again.svg")
    plot_load(report, outcomes, tmp_path / "load.PNG")
    svg = (tmp_path / "load.svg").read_text()
    assert svg == (tmp_path / "again.svg").read_text()
    assert (tmp_path / "load.PNG").read_bytes().startswith(b"\x89PNG")


def test_sessions_without_any_token(tmp_path: Path) -> None:
    outcomes = twelve()
    for outcome in outcomes:
        outcome.arrivals_s, outcome.tokens, outcome.end = [], 0, "failed"
    plot_load(document(ran(outcomes), [], NOW), outcomes, tmp_path / "load.png")


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--plot"):
        plot_load(document(ran(twelve()), [], NOW), twelve(), tmp_path / "no" / "load.svg")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(CommandFailure, match="matplotlib"):
        plot_load(document(ran(twelve()), [], NOW), twelve(), tmp_path / "load.svg")
