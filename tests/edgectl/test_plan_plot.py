"""The picture of a plan: what its bars stand for, its files, and life without matplotlib."""

from __future__ import annotations

import builtins
import sys
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError
from edgectl.output import CommandFailure
from edgectl.plan_plot import check_suffix, intervals_shown, plot_plan, rows_of
from planner.answer import Answer, make_plan
from tests.fakes.plan_cases import load_cases, request_of

CASES = {case["name"]: case for case in load_cases() if "expected" in case}
EVEN = "throughput: equal devices share evenly what latency leaves on one"


@cache
def answer_of(name: str = EVEN) -> Answer:
    return make_plan(request_of(CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_a_busy_server_does_one_thing_at_a_time(name: str) -> None:
    shown, start_ms, stop_ms = intervals_shown(answer_of(name))
    assert shown
    assert 0 <= start_ms < stop_ms
    at: defaultdict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for interval in shown:
        at[interval.kind, interval.place].append((interval.start_ms, interval.stop_ms))
    for spans in at.values():
        spans.sort()
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(spans))


def test_the_bottleneck_is_busy_all_the_time_shown() -> None:
    shown, start_ms, stop_ms = intervals_shown(answer_of())
    busy: defaultdict[tuple[str, int], float] = defaultdict(float)
    for interval in shown:
        busy[interval.kind, interval.place] += min(interval.stop_ms, stop_ms) - max(interval.start_ms, start_ms)
    assert max(busy.values()) == pytest.approx(stop_ms - start_ms, rel=0.02)


def test_a_row_for_every_stage_and_link() -> None:
    rows = rows_of(answer_of("relay: the way over c is quicker than the slow link"))
    assert [kind for _, kind, _ in rows] == ["stage", "link", "stage", "link", "stage"]
    assert [label for label, _, _ in rows] == ["a [0, 1)", "→ c", "c [1, 2)", "→ b", "b [2, 6)"]


def test_svg_and_png(tmp_path: Path) -> None:
    svg, png = tmp_path / "plan.svg", tmp_path / "plan.PNG"
    plot_plan(answer_of(), svg)
    plot_plan(answer_of(), png)
    text = svg.read_text(encoding="utf-8")
    assert "<svg" in text
    assert png.read_bytes().startswith(b"\x89PNG")
    plot_plan(answer_of(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == text, "one plan, one picture"


def test_other_suffixes_are_refused() -> None:
    for name in ("plan.pdf", "plan", "plan.svg.gz"):
        with pytest.raises(ValueError, match=r"must end in \.svg or \.png"):
            check_suffix(Path(name))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--plot"):
        plot_plan(answer_of(), tmp_path / "nowhere" / "plan.svg")


def test_without_matplotlib_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("no module named matplotlib")
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CommandFailure, match="--plot needs matplotlib") as refused:
        plot_plan(answer_of(), tmp_path / "plan.svg")
    assert "edgectl[plot]" in refused.value.hint
