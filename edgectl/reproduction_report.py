"""`edgectl reproduce edgeshard` as text and as JSON: the paper's numbers beside ours, and what ours are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgectl.output import table
from planner.paper_methods import TESTBED, Quantity
from planner.reproduction import Reproduced, Reproduction, Series, Study

_TITLES: dict[Quantity, str] = {
    "ms_per_token": "Table IV, latency in ms per token",
    "tokens_per_s": "Table IV, throughput in tokens per second (m micro-batches of r rows)",
}
CLOSE = 0.02
"""A cell agrees when ours is within this much of the paper's."""


def describe_reproduction(found: Reproduction) -> str:
    """Both halves of Table IV, then the studies."""
    parts = [
        f"{found.title}, on the testbed {TESTBED}; nothing here is measured by us\n- is out of memory or no plan",
        *(_table_iv(found.rows, quantity) for quantity in _TITLES),
        _verdict(found.rows),
        *map(_study, found.studies),
    ]
    return "\n\n".join(parts)


def reproduction_as_json(found: Reproduction) -> dict[str, Any]:
    """One object; null is out of memory or no plan."""
    return {
        "title": found.title,
        "testbed": TESTBED,
        "rows": [_row_as_json(row) for row in found.rows],
        "studies": [
            {
                "figure": study.figure,
                "title": study.title,
                "x_label": study.x_label,
                "x": list(study.x),
                "y_label": study.y_label,
                "series": [{"name": line.name, "values": list(line.values)} for line in study.series],
                "note": study.note,
            }
            for study in found.studies
        ],
    }


def method_of(row: Reproduced) -> str:
    """The method with the assumptions its number rests on."""
    cell = row.cell
    if cell.quantity == "ms_per_token" or row.ours is None:
        return cell.method
    plan = f", {cell.plan}" if cell.method == "edgeshard" else ""
    return f"{cell.method} (m {cell.micro_batches}, r {cell.rows}{plan})"


def _row_as_json(row: Reproduced) -> dict[str, Any]:
    cell = row.cell
    stages = () if row.route is None else row.route.stages
    return {
        "model": cell.model,
        "method": cell.method,
        "quantity": cell.quantity,
        "paper": cell.paper,
        "ours": row.ours,
        "difference": row.difference,
        "fits": row.fits,
        "mark": cell.mark,
        "note": cell.note,
        "micro_batches": cell.micro_batches,
        "rows": cell.rows,
        "plan": cell.plan,
        "stages": [{"device": each.device, "layers": [each.layers.start, each.layers.stop]} for each in stages],
    }


def _table_iv(rows: Sequence[Reproduced], quantity: Quantity) -> str:
    cells = [
        (
            row.cell.model,
            method_of(row),
            _number(row.cell.paper),
            _number(row.ours),
            _off_by(row.difference),
            row.cell.mark,
            row.cell.note,
        )
        for row in rows
        if row.cell.quantity == quantity
    ]
    header = ("model", "method", "paper", "ours", "off by", "ours is", "because")
    return f"{_TITLES[quantity]}\n{table(header, cells)}"


def _verdict(rows: Sequence[Reproduced]) -> str:
    """How many numbers agree, and how many of those say anything."""
    numbers = [row for row in rows if row.difference is not None]
    close = [row for row in numbers if abs(row.difference or 0.0) <= CLOSE]
    marks = Counter(row.cell.mark for row in close)
    kinds = ", ".join(f"{count} {mark}" for mark, count in marks.most_common())
    return f"{len(close)} of {len(numbers)} numbers are within {CLOSE:.0%} of the paper's: {kinds}"


def _study(study: Study) -> str:
    title = f"{study.figure[0].upper()}{study.figure[1:]}: {study.title}, in {study.y_label}"
    if _is_wide(study):
        header = (study.x_label, *(line.name for line in study.series))
        columns = (line.values for line in study.series)
        cells = [(at, *map(_number, values)) for at, *values in zip(study.x, *columns, strict=True)]
    else:
        header = (study.x_label, *study.x)
        cells = [_line(line) for line in study.series]
    note = f"\n{study.note}" if study.note else ""
    return f"{title}\n{table(header, cells)}{note}"


def _is_wide(study: Study) -> bool:
    """Whether its x reads better downwards: long names."""
    return sum(map(len, study.x)) > sum(len(line.name) for line in study.series)


def _line(line: Series) -> tuple[str, ...]:
    return (line.name, *map(_number, line.values))


def _off_by(difference: float | None) -> str:
    # Adding 0 takes the sign off a zero.
    return "-" if difference is None else f"{round(difference, 3) + 0.0:+.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
