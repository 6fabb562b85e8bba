"""The console script `edgectl`: the tree of commands, and how failures end it. No logic.

Commands import what they need when they run, so that `edgectl --help` and shell completion stay quick.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agent.errors import AgentError
from edgectl.commands.bench import app as bench_app
from edgectl.commands.eval import app as eval_app
from edgectl.commands.generate import generate
from edgectl.commands.init import add_device, init
from edgectl.commands.plan import plan
from edgectl.commands.profile import app as profile_app
from edgectl.commands.reproduce import app as reproduce_app
from edgectl.commands.rl import app as rl_app
from edgectl.commands.serve import serve
from edgectl.commands.status import status
from edgectl.engine import EngineError
from edgectl.failures import ExitCode, failure_of
from edgectl.output import CommandFailure, emit, say, say_failure
from planner.errors import PlannerError


class Commands(TyperGroup):
    """Turns the errors of all packages into one line on stderr and an exit code of the one table."""

    def invoke(self, ctx: Any) -> Any:
        """Raises typer.Exit, and click's own usage errors."""
        try:
            return super().invoke(ctx)
        except CommandFailure as problem:
            say_failure(str(problem), problem.hint)
            raise typer.Exit(problem.exit_code) from problem
        except (AgentError, PlannerError, EngineError) as problem:
            failure = failure_of(problem.code)
            text = problem.detail if isinstance(problem, EngineError) else str(problem)
            say_failure(text, failure.hint)
            raise typer.Exit(failure.exit_code) from problem
        except KeyboardInterrupt as problem:
            say("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from problem
        except BrokenPipeError as problem:
            # Whoever read our data (`| head`) has enough; Python would complain once more at exit.
            sys.stdout = None
            raise typer.Exit(ExitCode.FAILURE) from problem


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run one large language model across the devices you already have.",
)
device_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Devices of cluster.toml.")

app.command()(init)
app.command()(plan)
app.command()(serve)
app.command()(generate)
app.command()(status)
device_app.command("add")(add_device)
app.add_typer(device_app, name="device")
app.add_typer(profile_app, name="profile")
app.add_typer(reproduce_app, name="reproduce")
app.add_typer(bench_app, name="bench")
app.add_typer(eval_app, name="eval")
app.add_typer(rl_app, name="rl")


def _show_version(wanted: bool) -> None:
    if wanted:
        emit(f"edgectl {version('edgectl')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run one large language model across the devices you already have."""


def main() -> None:
    """Entry of the console script."""
    app()
