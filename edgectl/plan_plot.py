"""A picture of a plan: who works when in the full pipeline, and how full every device is. SVG or PNG by suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from planner.answer import Answer
from planner.simulator import Interval, simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
ROUNDS = 12
"""Rounds that are simulated: the pipeline is full after the first half."""
SHOWN_ROUNDS = 2.0
GIB = 1 << 30
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Told apart by people who see few colours (Paul Tol's bright scheme); micro-batches take turns."""


def check_suffix(path: Path) -> None:
    """Raises ValueError for a picture we cannot draw."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: the name must end in {' or '.join(SUFFIXES)}")


def plot_plan(answer: Answer, path: Path) -> None:
    """Writes the picture. Raises ValueError, ConfigError, and CommandFailure where matplotlib is missing."""
    check_suffix(path)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise CommandFailure(
            ExitCode.UNAVAILABLE, f"--plot needs matplotlib: {problem}", "pip install 'edgectl[plot]'"
        ) from problem

    rows = len(rows_of(answer))
    with matplotlib.rc_context({"svg.hashsalt": "edgectl", "font.size": 9}):
        figure = Figure(figsize=(10, 2.5 + 0.25 * rows + 0.25 * len(answer.plan.allotments)), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(rows, len(answer.plan.allotments) + 1))
        _draw_pipeline(above, answer)
        _draw_memory(below, answer)
        plan, found = answer.plan, answer.prediction
        figure.suptitle(
            f"{plan.model}, {plan.quantization}: {found.ms_per_token:.1f} ms per token, "
            f"{found.tokens_per_s:.2f} tokens/s predicted"
        )
        try:
            # A date would make two pictures of one plan differ.
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as problem:
            raise ConfigError(f"--plot {path}: {problem.strerror}") from problem


def rows_of(answer: Answer) -> list[tuple[str, str, int]]:
    """(label, kind, place) of each row of the upper picture: a stage, then the link behind it."""
    stages = answer.plan.routes[0].stages
    rows = []
    for place, stage in enumerate(stages):
        rows.append((f"{stage.device} {stage.layers}", "stage", place))
        if place + 1 < len(stages):
            rows.append((f"→ {stages[place + 1].device}", "link", place))
    return rows


def intervals_shown(answer: Answer) -> tuple[list[Interval], float, float]:
    """What stages and links do in the last rounds, and the time from which and to which."""
    route = answer.plan.routes[0]
    times = answer.model.times(route, route.rows)
    run = simulate(times, route.micro_batches, ROUNDS, rows=route.rows)
    # Rounds end as the last step runs dry; the window closes before.
    full = [interval.stop_ms for interval in run.intervals if interval.step < ROUNDS - 1]
    stop_ms = min(max(full), run.makespan_ms)
    start_ms = stop_ms - SHOWN_ROUNDS * max(times.round_ms, route.micro_batches * times.bottleneck_ms)
    shown = [interval for interval in run.intervals if interval.stop_ms > start_ms and interval.start_ms < stop_ms]
    return shown, max(start_ms, 0.0), stop_ms


def _draw_pipeline(axes: Axes, answer: Answer) -> None:
    rows = rows_of(answer)
    height = {(kind, place): index for index, (_, kind, place) in enumerate(rows)}
    shown, start_ms, stop_ms = intervals_shown(answer)
    for interval in shown:
        left, right = max(interval.start_ms, start_ms), min(interval.stop_ms, stop_ms)
        axes.barh(
            height[interval.kind, interval.place],
            right - left,
            left=left - start_ms,
            height=0.8 if interval.kind == "stage" else 0.4,
            color=_COLOURS[interval.micro_batch % len(_COLOURS)],
            edgecolor="white",
            linewidth=0.3,
        )
    route = answer.plan.routes[0]
    _label_rows(axes, [label for label, _, _ in rows])
    axes.set_xlim(0, stop_ms - start_ms)
    axes.set_xlabel(f"ms, pipeline full: {route.micro_batches} micro-batches (colours) of {route.rows} rows")


def _draw_memory(axes: Axes, answer: Answer) -> None:
    allotments = answer.plan.allotments
    for index, each in enumerate(allotments):
        axes.barh(index, each.memory_available_bytes / GIB, color="#dddddd")
        axes.barh(index, each.memory_bytes / GIB, color=_COLOURS[0])
    _label_rows(axes, [each.device for each in allotments])
    axes.set_xlabel("GiB used of available")


def _label_rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
