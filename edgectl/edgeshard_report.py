"""`edgectl bench edgeshard` as text and as JSON: paper, predicted, measured, and what the real transport added."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

from edgectl.edgeshard_bench import MeasuredRow
from edgectl.load.report import machine
from edgectl.output import table
from planner.paper_methods import TESTBED, Quantity

TITLES: dict[Quantity, str] = {
    "ms_per_token": "ms_per_token, one session",
    "tokens_per_s": "tokens_per_s, m micro-batches of r rows",
}
CLOSE = 0.10
"""Measured agrees with predicted when it is within this much."""


def describe_edgeshard(rows: Sequence[MeasuredRow]) -> str:
    """Latency rows, throughput rows, and what all of them say."""
    parts = [
        f"EdgeShard's Table IV (arXiv 2405.14371) on the testbed {TESTBED}, played by one agent per device; "
        "compute and links take the planner's times, all else is real"
    ]
    parts += [_half(rows, quantity) for quantity in TITLES if any(_is(row, quantity) for row in rows)]
    return "\n\n".join([*parts, verdict(rows)])


def document(rows: Sequence[MeasuredRow], command: Sequence[str], now: datetime) -> dict[str, Any]:
    """The numbers with where and when they were measured."""
    return {
        "benchmark": "edgectl bench edgeshard",
        "command": " ".join(command),
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": version("edgectl"),
        "machine": {**machine(), **company()},
        **edgeshard_as_json(rows),
    }


def company() -> dict[str, Any]:
    """Who else was there: processes that wanted to run at a time, and whether ours had to wait for them."""
    real_time = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    return {"load_average": round(os.getloadavg()[0], 2), "real_time": real_time}


def edgeshard_as_json(rows: Sequence[MeasuredRow]) -> dict[str, Any]:
    """One object; quantities have the names they have in a plan."""
    return {
        "testbed": TESTBED,
        "rows": [_row_as_json(row) for row in rows],
        "within_10_percent": sum(abs(row.difference) <= CLOSE for row in rows),
        "largest_difference": max((abs(row.difference) for row in rows), default=None),
        "added_ms_per_stage": added_ms_per_stage(rows),
    }


def added_ms_per_stage(rows: Sequence[MeasuredRow]) -> float | None:
    """Median of what a stage of a latency row takes beyond its prediction: Python, sockets, encryption, waking up."""
    added = [row.added_ms / len(row.times.compute_ms) for row in rows if row.added_ms is not None]
    return statistics.median(added) if added else None


def verdict(rows: Sequence[MeasuredRow]) -> str:
    close = sum(abs(row.difference) <= CLOSE for row in rows)
    text = f"{close} of {len(rows)} rows measured within {CLOSE:.0%} of the prediction"
    if rows:
        worst = max(rows, key=lambda row: abs(row.difference))
        text += f"; furthest off is {worst.name} with {worst.difference:+.1%}"
    added = added_ms_per_stage(rows)
    if added is not None:
        text += f"\na stage took {added:.2f} ms per token longer than predicted (median of the latency rows)"
    return text


def _is(row: MeasuredRow, quantity: Quantity) -> bool:
    return row.reproduced.cell.quantity == quantity


def _half(rows: Sequence[MeasuredRow], quantity: Quantity) -> str:
    header = ["model", "method", "stages", "paper", "predicted", "measured", "off by"]
    if quantity == "ms_per_token":
        header += ["compute", "hops", "added per stage"]
    cells = [_cells(row) for row in rows if _is(row, quantity)]
    return f"{TITLES[quantity]}\n{table(header, cells)}"


def _cells(row: MeasuredRow) -> list[str]:
    cell, stages = row.reproduced.cell, len(row.times.compute_ms)
    many = cell.quantity == "tokens_per_s"
    plan = f", {cell.plan}" if cell.method == "edgeshard" else ""
    method = f"{cell.method} (m {cell.micro_batches}, r {cell.rows}{plan})" if many else cell.method
    cells = [cell.model, method, str(stages), _number(cell.paper), _number(row.predicted), _number(row.measured)]
    cells.append(f"{round(row.difference, 4) + 0.0:+.1%}")
    if not many:
        compute, hops = _sums(row)
        cells += [_number(compute), _number(hops), _number((row.added_ms or 0.0) / stages)]
    return cells


def _sums(row: MeasuredRow) -> tuple[float | None, float | None]:
    """Computing and hops of all stages as the agents tell them; None where one did not."""
    compute = [stage.compute_ms for stage in row.stages]
    hops = [stage.hop_ms for stage in row.stages]
    return _sum(compute), _sum(hops)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _row_as_json(row: MeasuredRow) -> dict[str, Any]:
    cell, route = row.reproduced.cell, row.plan.routes[0]
    compute_ms, hop_ms = _sums(row)
    return {
        "name": row.name,
        "model": cell.model,
        "method": cell.method,
        "quantity": cell.quantity,
        "mark": cell.mark,
        "micro_batches": route.micro_batches,
        "rows": route.rows,
        "paper": cell.paper,
        "predicted": row.predicted,
        "measured": row.measured,
        "difference": row.difference,
        "tokens": row.tokens,
        "predicted_compute_ms": sum(row.times.compute_ms),
        "predicted_hop_ms": row.times.round_ms - sum(row.times.compute_ms),
        "compute_ms": compute_ms,
        "hop_ms": hop_ms,
        "added_ms": row.added_ms,
        "stages": [
            {"device": stage.device, "layers": [stage.layers.start, stage.layers.stop]} for stage in route.stages
        ],
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
