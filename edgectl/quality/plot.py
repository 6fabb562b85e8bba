"""Perplexity against split and against the channel, a column per model: Fig. 3 of "Adaptive Layer Splitting for
Wireless LLM Inference" (arXiv 2406.02616)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.quality.collect import Collected
from rl.quality import QualityRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
WIDE = 4.0
"""From which ratio of the largest to the smallest perplexity on an axis is logarithmic."""


def plot_perplexity(found: Sequence[Collected], path: Path, caption: str = "") -> None:
    """One picture: above perplexity against the split, a line per channel; below against the channel, a line per split.

    Bars are 95 % intervals. `caption`, the command that made it, stands below. Raises CommandFailure where matplotlib
    is missing and ConfigError for a file that cannot be written.
    """
    check_picture(path)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise CommandFailure(
            ExitCode.UNAVAILABLE, f"--plot needs matplotlib: {problem}", "pip install 'edgectl[plot]'"
        ) from problem

    with matplotlib.rc_context({"svg.hashsalt": "edgectl", "font.size": 9}):
        figure = Figure(figsize=(6.5 * len(found), 8.0), layout="constrained")
        panels = figure.subplots(2, len(found), squeeze=False)
        for column, collected in enumerate(found):
            panels[0][column].set_title(collected.subject.model.name)
            draw_against_split(panels[0][column], collected.records)
            draw_against_channel(panels[1][column], collected.records)
        if caption:
            figure.supxlabel(caption, fontsize=7)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A date would make two pictures of the same numbers differ.
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as problem:
            raise ConfigError(f"--plot {path}: {problem.strerror}") from problem


def check_picture(path: Path) -> None:
    """Raises ConfigError for a name that is no picture's, or where none can be: before anything is measured."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot {path}: the name has to end with {' or '.join(SUFFIXES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"--plot {path}: {problem.strerror}") from problem


def draw_against_split(axes: Axes, records: Sequence[QualityRecord]) -> None:
    """A line per channel."""
    _draw(axes, records, lambda record: record.split, lambda record: _channel(record, records))
    axes.set_xlabel("layers before the hop")


def draw_against_channel(axes: Axes, records: Sequence[QualityRecord]) -> None:
    """A line per split, and per noise where losses are many."""
    losses, sigmas = ({getattr(record, name) for record in records} for name in ("loss", "sigma"))
    snrs = {record.snr_db for record in records}

    def line(record: QualityRecord) -> str:
        noise = f", {_noise(record)}" if len(losses) > 1 and (len(sigmas) > 1 or len(snrs) > 1) else ""
        return f"l = {record.split}{noise}"

    if len(losses) > 1:
        _draw(axes, records, lambda record: record.loss, line)
        axes.set_xlabel(
            f"probability that {'an element' if records[0].granularity == 'element' else 'a packet'} is lost"
        )
    elif snrs != {None}:
        _draw(axes, records, lambda record: record.snr_db or 0.0, line)
        axes.set_xlabel("SNR per token, dB")
    else:
        _draw(axes, records, lambda record: record.sigma, line)
        axes.set_xlabel("sigma of the noise")


def _draw(
    axes: Axes,
    records: Sequence[QualityRecord],
    along: Callable[[QualityRecord], float],
    by: Callable[[QualityRecord], str],
) -> None:
    """A line with bars for every value of `by`; what has no number has no point."""
    from matplotlib import colormaps

    lines: dict[str, list[QualityRecord]] = {}
    for record in records:
        lines.setdefault(by(record), []).append(record)
    colours = colormaps["viridis"]
    for place, (name, group) in enumerate(lines.items()):
        shown = sorted((each for each in group if math.isfinite(each.ppl_mean)), key=along)
        axes.errorbar(
            [along(record) for record in shown],
            [record.ppl_mean for record in shown],
            yerr=[record.ppl_ci95 or 0.0 for record in shown],
            marker="o",
            markersize=3,
            linewidth=1,
            capsize=2,
            color=colours(0.9 * place / max(1, len(lines) - 1)),
            label=name,
        )
    means = [record.ppl_mean for record in records if math.isfinite(record.ppl_mean)]
    if means and max(means) > WIDE * min(means):
        axes.set_yscale("log")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _channel(record: QualityRecord, records: Sequence[QualityRecord]) -> str:
    """The channel in as many words as it takes to tell the records' channels apart."""
    words = []
    if len({each.loss for each in records}) > 1:
        words.append(f"loss {record.loss:.3g}")
    if len({(each.sigma, each.snr_db) for each in records}) > 1:
        words.append(_noise(record))
    return ", ".join(words) or f"loss {record.loss:g}, {_noise(record)}"


def _noise(record: QualityRecord) -> str:
    return f"sigma {record.sigma:g}" if record.snr_db is None else f"{record.snr_db:g} dB"
