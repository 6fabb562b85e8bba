"""A picture of a load: how its latencies are distributed, and tokens and open sessions over time. SVG or PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.load.summary import Outcome, gaps_ms
from edgectl.output import CommandFailure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_MS = 0.1
"""Two chunks that were read at once have no time between them, and a logarithm no zero."""
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
"""Told apart by people who see few colours (Paul Tol's bright scheme)."""


def steps_of(samples: Sequence[float]) -> tuple[list[float], list[float]]:
    """The empirical distribution: ascending samples, and the share that is at most each."""
    ordered = sorted(samples)
    return ordered, [(rank + 1) / len(ordered) for rank in range(len(ordered))]


def plot_load(report: dict[str, Any], counted: Sequence[Outcome], path: Path) -> None:
    """Writes the picture. Raises ConfigError, and CommandFailure where matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise CommandFailure(
            ExitCode.UNAVAILABLE, f"--plot needs matplotlib: {problem}", "pip install 'edgectl[plot]'"
        ) from problem

    with matplotlib.rc_context({"svg.hashsalt": "edgectl", "font.size": 9}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        (left, right), (below, _) = figure.subplots(2, 2, gridspec_kw={"height_ratios": (3, 2)})
        _.remove()
        below.set_subplotspec(below.get_subplotspec().get_gridspec()[1, :])
        firsts = [o.time_to_first_token_ms for o in counted]
        ends = [o.end_to_end_ms for o in counted]
        each = [o.ms_per_token for o in counted]
        gaps: list[float | None] = [gap for o in counted for gap in gaps_ms(o)]
        _draw_shares(left, {"to the first token": firsts, "end to end": ends}, report["goodput"]["slo_ttft_ms"])
        _draw_shares(right, {"per token": each, "between tokens": gaps}, report["goodput"]["slo_tpot_ms"])
        _draw_timeline(below, report["timeline"])
        rate = report["steady_tokens_per_s"] or report["tokens_per_s"]
        figure.suptitle(f"{report['model']}: {report['sessions']['offered']} sessions, {rate} tokens/s")
        try:
            # A date would make two pictures of one load differ.
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as problem:
            raise ConfigError(f"--plot {path}: {problem.strerror}") from problem


def _draw_shares(axes: Axes, what: dict[str, list[float | None]], objective_ms: float | None) -> None:
    from matplotlib.ticker import LogFormatter

    for (label, found), colour in zip(what.items(), _COLOURS, strict=False):
        samples = [max(sample, LEAST_MS) for sample in found if sample is not None]
        if samples:
            axes.step(*steps_of(samples), where="post", label=label, color=colour)
    if objective_ms is not None:
        axes.axvline(objective_ms, color="#bbbbbb", linestyle="--", label="objective")
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(LogFormatter(minor_thresholds=(2, 0.6)))
    axes.set_ylim(0, 1)
    axes.set_xlabel("ms")
    axes.set_ylabel("share of samples at most so long")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right", frameon=False)


def _draw_timeline(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    seconds = [point["s"] for point in points]
    axes.plot(seconds, [point["tokens_per_s"] for point in points], color=_COLOURS[0], drawstyle="steps-post")
    axes.set_ylabel("tokens/s", color=_COLOURS[0])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("s")
    other = axes.twinx()
    other.plot(seconds, [point["open"] for point in points], color=_COLOURS[1], drawstyle="steps-post")
    other.set_ylabel("sessions open", color=_COLOURS[1])
    other.set_ylim(bottom=0)
