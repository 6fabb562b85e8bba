"""Pictures of `edgectl reproduce edgeshard`: Table IV as bars, the studies as lines or bars, one file per figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.reproduction_report import method_of
from planner.reproduction import Reproduced, Reproduction, Series, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PictureFormat = Literal["svg", "png"]

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Told apart by people who see few colours (Paul Tol's bright scheme)."""

WIDE = 10.0
"""From which ratio of the longest to the shortest line or group on an axis is logarithmic."""


def plot_reproduction(found: Reproduction, folder: Path, kind: PictureFormat) -> list[Path]:
    """Writes the pictures and returns their paths.

    Raises CommandFailure where matplotlib is missing and ConfigError for a folder that cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise CommandFailure(
            ExitCode.UNAVAILABLE, f"--plot needs matplotlib: {problem}", "pip install 'edgectl[plot]'"
        ) from problem

    written = []
    with matplotlib.rc_context({"svg.hashsalt": "edgectl", "font.size": 9}):
        pictures = {"table-iv": (1, 2)}
        figures = {name: list(group) for name, group in groupby(found.studies, lambda study: study.figure)}
        pictures |= {name.replace(" ", "-"): (1, len(group)) for name, group in figures.items()}
        for name, (rows, columns) in pictures.items():
            figure = Figure(figsize=(7.5 * columns, 4.5 * rows), layout="constrained")
            panels = figure.subplots(rows, columns, squeeze=False)[0]
            if name == "table-iv":
                _draw_table_iv(panels, found.rows)
            else:
                for axes, study in zip(panels, figures[name.replace("-", " ")], strict=True):
                    _draw_study(axes, study)
            written.append(_save(figure, folder / f"{name}.{kind}", kind))
    return written


def _save(figure: Figure, path: Path, kind: PictureFormat) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A date would make two pictures of the same numbers differ.
        figure.savefig(path, metadata={"Date": None} if kind == "svg" else None)
    except OSError as problem:
        raise ConfigError(f"--plot {path.parent}: {problem.strerror}") from problem
    return path


def _draw_table_iv(panels: Sequence[Axes], rows: Sequence[Reproduced]) -> None:
    """Paper and ours side by side, per cell that has numbers; on a log axis, for 70B takes forty times as long."""
    for axes, quantity, label in zip(
        panels, ("ms_per_token", "tokens_per_s"), ("ms per token", "tokens per second"), strict=True
    ):
        shown = [row for row in rows if row.cell.quantity == quantity and row.difference is not None]
        names = tuple(f"{row.cell.model} {method_of(row)}\n{row.cell.mark}" for row in shown)
        series = (
            Series("paper", tuple(row.cell.paper for row in shown)),
            Series("ours", tuple(row.ours for row in shown)),
        )
        axes.set_title("Table IV, latency" if quantity == "ms_per_token" else "Table IV, throughput")
        _bars(axes, names, series, label)
        axes.set_xscale("log")


def _draw_study(axes: Axes, study: Study) -> None:
    axes.set_title(f"{study.figure.capitalize()}: {study.title}", fontsize=9)
    if not all(at.isdigit() for at in study.x):
        _bars(axes, study.x, study.series, study.y_label)
        columns = zip(*(line.values for line in study.series), strict=True)
        if _spread([max(filter(None, column)) for column in columns]) > WIDE:
            axes.set_xscale("log")
        return
    x = [float(at) for at in study.x]
    for place, line in enumerate(study.series):
        points = [(at, value) for at, value in zip(x, line.values, strict=True) if value is not None]
        colour = _COLOURS[place % len(_COLOURS)]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=line.name)
    axes.set_xlabel(study.x_label)
    axes.set_ylabel(study.y_label)
    if _spread([max(filter(None, line.values)) for line in study.series]) > WIDE:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _bars(axes: Axes, names: Sequence[str], series: Sequence[Series], label: str) -> None:
    """Horizontal groups, the first name on top; what has no number has no bar."""
    thickness = 0.8 / len(series)
    for place, line in enumerate(series):
        at = [row + (place - (len(series) - 1) / 2) * thickness for row in range(len(names))]
        shown = [(y, value) for y, value in zip(at, line.values, strict=True) if value is not None]
        if shown:
            places, values = zip(*shown, strict=True)
            axes.barh(places, values, thickness, color=_COLOURS[place % len(_COLOURS)], label=line.name)
            for y, value in shown:
                axes.annotate(f"{value:.2f}", (value, y), (2, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.12)
    axes.legend(fontsize=8)


def _spread(values: Sequence[float]) -> float:
    return max(values) / min(values)
