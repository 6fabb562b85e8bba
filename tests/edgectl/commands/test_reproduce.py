"""`edgectl reproduce edgeshard` from the command line: text, JSON, pictures."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from edgectl.commands.reproduce import app


def test_text_and_pictures(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["edgeshard", "--plot", str(tmp_path)])
    assert result.exit_code == 0
    assert "Table IV, latency in ms per token" in result.stdout
    names = ("table-iv", "figure-7", "figure-8", "figure-9", "figure-10", "algorithm-1")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.svg" for name in names}
    assert all(f"{name}.svg" in result.stderr for name in names)


def test_json() -> None:
    result = CliRunner().invoke(app, ["edgeshard", "--json"])
    assert result.exit_code == 0
    assert {row["mark"] for row in json.loads(result.stdout)["rows"]} == {
        "calibrated",
        "semi-predicted",
        "predicted",
        "not reproducible",
        "infeasible",
    }
