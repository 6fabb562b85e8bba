"""`edgectl bench`: its commands, and how rows of Table IV are chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgectl.failures import ExitCode
from tests.fakes.command_line import edgectl


def test_help_names_its_commands() -> None:
    text = edgectl("bench", "--help").stdout
    assert all(f"  {command} " in text for command in ("edgeshard", "serve", "netns"))
    assert "  bench " in edgectl("--help").stdout


def test_rows_are_listed_and_chosen() -> None:
    result = edgectl("bench", "edgeshard", "--list", "--rows", "70b", "--rows", "7b edge-solo ms")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "llama2-7b edge-solo ms_per_token",
        "llama2-70b edgeshard ms_per_token",
        "llama2-70b edgeshard tokens_per_s m4 r1 bottleneck",
        "llama2-70b edgeshard tokens_per_s m4 r1 ring",
    ]


def test_no_such_row_names_the_way_out() -> None:
    result = edgectl("bench", "edgeshard", "--rows", "llama3")
    assert result.exit_code == ExitCode.USAGE
    assert "llama3" in result.stderr
    assert "--list" in result.stderr


@pytest.mark.cluster
def test_a_row_as_json_and_as_a_file(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = edgectl(
        "bench", "edgeshard", "--rows", "7b edge-solo ms_per_token", "--seconds", "0.1", "--json", "--out", str(out)
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads(out.read_text())
    assert [row["name"] for row in found["rows"]] == ["llama2-7b edge-solo ms_per_token"]
    assert f"wrote {out}" in result.stderr
