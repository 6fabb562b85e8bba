"""`edgectl bench serve`: from the command line to the report, the file and the picture."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from edgectl.cli import app
from edgectl.commands.bench_serve import bench_serve
from tests.fakes.fake_engine import FakeEngine, Script
from tests.fakes.http_server import serving

ARGUMENTS = ("bench", "serve", "--prompt-tokens", "4", "--output-tokens", "3", "--sessions", "5")


def against(engine: FakeEngine, *arguments: str) -> Result:
    """The command against a server over `engine`, which it finds in the environment."""

    async def run() -> Result:
        async with serving(engine) as served:
            env = {"EDGE_URL": served.url, "NO_COLOR": "1", "COLUMNS": "200"}
            return await asyncio.to_thread(CliRunner().invoke, app, [*ARGUMENTS, *arguments], env=env)

    return asyncio.run(run())


def speaking() -> FakeEngine:
    return FakeEngine(lambda opening: Script(tokens=[300 + at for at in range(opening.max_tokens)]))


def test_the_report_the_file_and_the_picture(tmp_path: Path) -> None:
    out, plot = tmp_path / "report.json", tmp_path / "load.png"
    result = against(speaking(), "--concurrency", "2", "--out", str(out), "--plot", str(plot), "--slo-ttft-ms", "9999")
    assert result.exit_code == 0, result.output
    assert "closed loop, 2 at a time" in result.stdout
    assert "goodput" in result.stdout
    assert json.loads(out.read_text())["sessions"]["completed"] == 5
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json_on_stdout() -> None:
    result = against(speaking(), "--rate", "50", "--arrivals", "constant", "--json", "--detailed")
    report = json.loads(result.stdout)
    assert report["load"]["arrivals"] == "constant"
    assert len(report["detail"]) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "1", "--concurrency", "1"),
        ("--arrivals", "bursty"),
        ("--plot", "x.gif"),
        ("--prompt-tokens", "0"),
        ("--cancel-share", "2"),
        ("--warm-up", "5"),
        ("--rate", "nan"),
        ("--vocabulary", "3"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    assert against(speaking(), *arguments).exit_code == 2


def test_a_file_that_cannot_be_written_is_told_and_the_report_shown(tmp_path: Path) -> None:
    result = against(speaking(), "--out", str(tmp_path / "no" / "x.json"))
    assert "ms to the first token" in result.stdout
    assert "--out" in result.stderr
    assert result.exit_code != 0


def test_nobody_answers() -> None:
    alone = typer.Typer()
    alone.command()(bench_serve)
    result = CliRunner().invoke(alone, ["http://127.0.0.1:1"])
    assert result.exit_code != 0
    assert "nothing answers" in str(result.exception)
