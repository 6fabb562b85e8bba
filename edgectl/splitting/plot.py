"""Pictures of the splitting study, one file per section that has something to draw; the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.splitting.results import Choices, Curve, Panel, Section, Violin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PictureFormat = Literal["svg", "png"]

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000", "#997700")
"""Told apart by people who see few colours (Paul Tol's bright scheme), and two more."""
_DASHES: tuple[tuple[int, ...], ...] = ((4, 2), (1, 1), (4, 1, 1, 1), (6, 2, 1, 2), (2, 3), (8, 3))
MOST_COLUMNS = 3
MOST_DOTS = 150
"""Of a scatter, in a picture that is committed."""
MOST_INSIDE = 9
"""Lines of a legend within the axes; a longer one stands beside them."""
MOST_MARKED = 12
"""Points of a line that are marked one by one, with bars for their intervals."""
VIOLIN_POINTS = 60
"""Outline of a violin."""


def plot_study(sections: Sequence[Section], folder: Path, kind: PictureFormat) -> dict[str, Path]:
    """Writes the pictures and returns their paths by section.

    Raises CommandFailure where matplotlib is missing and ConfigError for a folder that cannot be written.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    written = {}
    # Text as text: a tenth of the bytes of outlines, in pictures that are committed.
    with matplotlib.rc_context({"svg.hashsalt": "edgectl", "svg.fonttype": "none", "font.size": 9}):
        for section in sections:
            if section.has_picture:
                figure = Figure(layout="constrained")
                _draw(figure, section)
                written[section.key] = _save(figure, folder / f"{section.key}.{kind}", kind)
    return written


def require_matplotlib() -> None:
    """Raises CommandFailure where it is missing: better before an hour of work than after it."""
    try:
        import matplotlib  # noqa: F401  (only whether it is there)
    except ImportError as problem:
        raise CommandFailure(
            ExitCode.UNAVAILABLE, f"the figures need matplotlib: {problem}", "pip install 'edgectl[plot]'"
        ) from problem


def _save(figure: Figure, path: Path, kind: PictureFormat) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A date would make two pictures of the same numbers differ.
        figure.savefig(path, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    except OSError as problem:
        raise ConfigError(f"--out {path.parent}: {problem.strerror}") from problem
    return path


def _draw(figure: Figure, section: Section) -> None:
    count = len(section.panels) + len(section.choices) + bool(section.violins)
    columns = min(count, MOST_COLUMNS)
    rows = math.ceil(count / columns)
    widest = max((len(panel.curves) + len(panel.levels) for panel in section.panels), default=0)
    figure.set_size_inches(4.6 * columns + 2.6 * (widest > MOST_INSIDE), 3.6 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    places = iter(axes)
    for panel in section.panels:
        _draw_panel(next(places), panel)
    for choices in section.choices:
        _draw_choices(next(places), choices)
    if section.violins:
        _draw_violins(next(places), section.violins)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9)
    for place, curve in enumerate(panel.curves):
        _draw_curve(axes, curve, _COLOURS[place % len(_COLOURS)])
    for place, level in enumerate(panel.levels):
        dashes = (0, _DASHES[place % len(_DASHES)])
        axes.axhline(
            level.value, color="#555555", linewidth=1, linestyle=dashes, label=f"{level.name} {level.value:.2f}"
        )
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if "x" in panel.logarithmic:
        axes.set_xscale("log")
    if "y" in panel.logarithmic:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if len(panel.curves) + len(panel.levels) > MOST_INSIDE:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.legend(fontsize=7, framealpha=0.6)


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    points = [point for point in curve.points if math.isfinite(point.value.mean)]
    x = [point.at for point in points]
    means = [point.value.mean for point in points]
    widths = [point.value.half or 0.0 for point in points]
    if len(points) <= MOST_MARKED:
        axes.errorbar(x, means, widths, color=colour, marker="o", markersize=3, linewidth=1.3, label=curve.name)
        return
    axes.plot(x, means, color=colour, linewidth=1.3, label=curve.name)
    if any(widths):
        low = [mean - width for mean, width in zip(means, widths, strict=True)]
        high = [mean + width for mean, width in zip(means, widths, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _draw_choices(axes: Axes, choices: Choices) -> None:
    axes.set_title(f"{choices.name}: slope {choices.slope:.1f} layers per unit, R² {choices.r_squared:.2f}", fontsize=9)
    stride = math.ceil(len(choices.points) / MOST_DOTS)
    dots = choices.points[::stride]
    losses, splits = [loss for loss, _ in dots], [split for _, split in dots]
    axes.scatter(losses, splits, s=8, alpha=0.35, color=_COLOURS[0], linewidths=0, label="end of an episode")
    axes.plot(*zip(*choices.loess, strict=True), color=_COLOURS[1], label="LOESS")
    ends = [choices.loess[0][0], choices.loess[-1][0]]
    line = [choices.slope * loss + choices.intercept for loss in ends]
    axes.plot(ends, line, color="#555555", linestyle="--", linewidth=1, label="least squares")
    axes.set_xlabel("loss probability")
    axes.set_ylabel("split (layers on the source)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _draw_violins(axes: Axes, violins: Sequence[Violin]) -> None:
    values = [list(violin.values) for violin in violins]
    # A distribution of one value has no density to draw.
    spread = [place for place, each in enumerate(values, 1) if max(each) > min(each)]
    if spread:
        drawn = axes.violinplot(
            [values[place - 1] for place in spread], spread, showextrema=False, widths=0.8, points=VIOLIN_POINTS
        )
        bodies: Any = drawn["bodies"]
        for place, body in zip(spread, bodies, strict=True):
            body.set_facecolor(_COLOURS[(place - 1) % len(_COLOURS)])
            body.set_alpha(0.5)
    for place, violin in enumerate(violins, 1):
        low, middle, high = violin.quartiles
        axes.vlines(place, low, high, color="#333333", linewidth=3)
        axes.plot([place], [middle], marker="o", markersize=4, color="white", markeredgecolor="#333333")
        axes.annotate(f"{violin.mean:.2f}", (place, high), (6, 4), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(1, len(violins) + 1), [violin.name for violin in violins], fontsize=7, rotation=20)
    axes.set_ylabel("return of an episode")
    axes.grid(alpha=0.3, axis="y")
