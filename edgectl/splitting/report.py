"""The splitting study as text: a Markdown report with the paper's figures and tables beside ours, and as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgectl.splitting.results import Choices, Finding, Panel, Section, Study, Table, Violin, printed
from rl.evaluate import Interval

PAPER = "Adaptive Layer Splitting for Wireless LLM Inference in Edge Computing (arXiv 2406.02616)"
JSON_DIGITS = 5
"""Of a number in the committed data: more than any of them is known to."""
MOST_VALUES = 200
"""Of a violin or a scatter in the committed data."""
MARGIN_COLUMNS = 160


def report_markdown(study: Study, pictures: Mapping[str, Path], folder: Path) -> str:
    """The whole report; pictures are linked relative to the folder it will lie in."""
    parts = [
        f"# Adaptive layer splitting, studied again on {study.model}",
        _preface(study),
        "## What was found",
        _findings(study.findings),
        *(_section(section, pictures, folder, study.command) for section in study.sections),
        "## Where the time went",
        _markdown(("part", "seconds"), [(name, f"{seconds:.0f}") for name, seconds in study.seconds]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_text(study: Study) -> str:
    """The findings, for a terminal."""
    from edgectl.output import table

    rows = [(each.what, each.paper, each.ours, each.verdict) for each in study.findings]
    return table(("claim or target", "paper / target", "here", "verdict"), rows)


def study_as_json(study: Study) -> dict[str, Any]:
    """Everything that was drawn, rounded; long lists of values are thinned, and say of how many they are."""
    document = asdict(study)
    for section in document["sections"]:
        for violin in section["violins"]:
            violin["of"] = len(violin["values"])
            violin["values"] = _thinned(violin["values"])
        for choices in section["choices"]:
            choices["of"] = len(choices["points"])
            choices["points"] = _thinned(choices["points"])
    rounded: dict[str, Any] = _rounded(document)
    return rounded


def _preface(study: Study) -> str:
    warning = (
        "" if study.size == "full" else " **A quick run: its numbers show that everything works, and nothing else.**"
    )
    return _wrapped(
        f"{PAPER}, computed here by `{study.command}` on {study.machine}.{warning} Numbers of the paper are quoted, "
        "never mixed into ours; where it does not print one, the table says so. Intervals are 95 % over seeds "
        "(Student's t) unless a caption says otherwise."
    )


def _findings(findings: Sequence[Finding]) -> str:
    rows = [(each.what, each.paper, each.ours, each.verdict) for each in findings]
    return _markdown(("claim or target", "paper or target", "here", "verdict"), rows)


def _section(section: Section, pictures: Mapping[str, Path], folder: Path, command: str) -> str:
    parts = [f"## {section.title}", _wrapped(section.text)]
    if section.key in pictures:
        # Not Path.relative_to: pictures may lie beside the folder.
        path = Path(os.path.relpath(pictures[section.key], folder)).as_posix()
        parts.append(f"![{section.title}]({path})\n\nMade by `{command}`.")
    parts += [_panel(panel) for panel in section.panels]
    if section.violins:
        parts.append(_violins(section.violins))
    if section.choices:
        parts.append(_choices(section.choices))
    parts += [_table(each) for each in section.tables]
    return "\n\n".join(part for part in parts if part)


def _panel(panel: Panel) -> str:
    """A panel's ends, for readers without pictures: the whole of short curves, the last point of long ones."""
    if not panel.curves:
        return ""
    if all(len(curve.points) <= 10 for curve in panel.curves):
        at = sorted({point.at for curve in panel.curves for point in curve.points})
        rows = []
        for curve in panel.curves:
            values = {point.at: point.value for point in curve.points}
            rows.append((curve.name, *(_interval(values.get(x)) for x in at)))
        return f"{panel.title}, {panel.y_label}:\n\n" + _markdown((panel.x_label, *(f"{x:g}" for x in at)), rows)
    rows = [(curve.name, _interval(curve.points[-1].value)) for curve in panel.curves]
    rows += [(level.name, f"{level.value:.3f}") for level in panel.levels]
    return f"{panel.title}:\n\n" + _markdown(("at the end", panel.y_label), rows)


def _violins(violins: Sequence[Violin]) -> str:
    rows = [
        (each.name, f"{each.mean:.3f}", *(f"{quartile:.3f}" for quartile in each.quartiles), f"{len(each.values):,}")
        for each in violins
    ]
    return _markdown(("policy", "mean", "lower quartile", "median", "upper quartile", "episodes"), rows)


def _choices(choices: Sequence[Choices]) -> str:
    rows = [
        (
            each.name,
            f"{each.slope:+.2f}",
            f"{each.intercept:.2f}",
            f"{each.r_squared:.3f}",
            f"{each.loess[0][1]:.1f} → {each.loess[-1][1]:.1f}",
            f"{len(each.points):,}",
        )
        for each in choices
    ]
    header = (
        "policy",
        "slope (layers per unit of loss)",
        "intercept",
        "R²",
        "LOESS, lowest → highest loss",
        "episodes",
    )
    return _markdown(header, rows)


def _table(table: Table) -> str:
    note = f"\n\n{_wrapped(table.note)}" if table.note else ""
    rows = [(row.name, *row.cells) for row in table.rows]
    title = f"{table.title}:\n\n" if table.title else ""
    return title + _markdown(table.header, rows) + note


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _interval(value: Interval | None) -> str:
    return "-" if value is None else printed(value)


def _wrapped(text: str) -> str:
    import textwrap

    paragraphs = text.split("\n\n")
    return "\n\n".join(
        textwrap.fill(each, MARGIN_COLUMNS, break_long_words=False, break_on_hyphens=False) for each in paragraphs
    )


def _thinned(values: Sequence[Any]) -> list[Any]:
    return list(values[:: math.ceil(len(values) / MOST_VALUES) or 1])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no NaN; null is what could not be computed.
        return float(f"{value:.{JSON_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
