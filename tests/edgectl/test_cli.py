"""The tree of commands, how failures end it, and how quickly it is there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
import typer

from agent.errors import OutOfMemory
from edgectl.cli import app
from edgectl.engine import EngineError
from edgectl.failures import FAILURES, ExitCode
from edgectl.output import CommandFailure
from planner.errors import UnsupportedModel
from tests.fakes.command_line import edgectl


def test_version() -> None:
    result = edgectl("--version")
    assert (result.exit_code, result.stdout) == (0, f"edgectl {version('edgectl')}\n")


def test_help_names_every_command() -> None:
    text = edgectl("--help").stdout
    for command in ("init", "plan", "serve", "generate", "status", "device", "profile", "reproduce"):
        assert f"  {command} " in text


@pytest.mark.parametrize("arguments", [("unknown",), ("status", "--unknown"), ("generate",), ("serve",)])
def test_wrong_arguments_are_usage_errors(arguments: tuple[str, ...]) -> None:
    result = edgectl(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("problem", "exit_code", "text"),
    [
        (OutOfMemory("12 MiB short on agx-1"), ExitCode.MEMORY, "12 MiB short on agx-1"),
        (UnsupportedModel("gpt2 is not supported"), ExitCode.MODEL, "gpt2 is not supported"),
        (EngineError("device_lost", "agx-1 is gone"), ExitCode.SESSION_LOST, "agx-1 is gone"),
        (CommandFailure(ExitCode.UNAVAILABLE, "nobody there"), ExitCode.UNAVAILABLE, "nobody there"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(problem: BaseException, exit_code: ExitCode, text: str) -> None:
    from typer.testing import CliRunner

    from edgectl.cli import Commands

    failing = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @failing.command()
    def fail() -> None:
        raise problem

    @failing.command()
    def other() -> None:
        """A second command, so that the first keeps its name."""

    result = CliRunner().invoke(failing, ["fail"])
    assert result.exit_code == exit_code
    assert result.stderr.splitlines()[0].endswith(text)
    assert "Traceback" not in result.stderr


def test_our_own_errors_all_have_a_row_in_the_table() -> None:
    for problem in (OutOfMemory, UnsupportedModel):
        assert problem.code in FAILURES


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = "numpy onnxruntime onnx transformers torch fastapi uvicorn httpx zmq huggingface_hub asyncio rich"
    code = f"import sys, edgectl.cli; print([m for m in {heavy.split()!r} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout == "[]\n"


def test_the_app_is_the_whole_tree() -> None:
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} == {
        "init",
        "plan",
        "serve",
        "generate",
        "status",
    }
