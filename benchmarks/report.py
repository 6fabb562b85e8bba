"""How every benchmark reports: one table on stdout, and one JSON file with machine, command, date and commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, object]:
    """What a figure depends on: processor, cores, kernel, Python."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def this_run() -> dict[str, str]:
    """What was run, when, and of which commit."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"command": " ".join(["python", *sys.argv]), "date": date, "commit": commit()}


def write_report(
    benchmark: str, rows: Sequence[Mapping[str, object]], facts: Mapping[str, object], out: Path | None
) -> None:
    """Print `rows` as a table and `facts` below it; write both, with the machine, to `out` if given."""
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    cells = [headings, *([_text(row.get(heading)) for heading in headings] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for name, value in facts.items():
        if not isinstance(value, (dict, list)):
            print(f"{name}: {_text(value)}")
    if out is not None:
        report = {
            "benchmark": benchmark,
            **this_run(),
            "machine": machine(),
            "rows": list(rows),
            **facts,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
