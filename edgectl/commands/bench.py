"""`edgectl bench`: run something and measure it. One module per command; `edgeshard` is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgectl.commands.bench_adaptive import bench_adaptive
from edgectl.commands.bench_netns import bench_netns
from edgectl.commands.bench_serve import bench_serve

app = typer.Typer(no_args_is_help=True, help="Run a cluster or a load and measure it.")

app.command("serve")(bench_serve)
app.command("netns")(bench_netns)
app.command("adaptive")(bench_adaptive)


@app.callback()
def _group() -> None:
    """Run a cluster or a load and measure it."""


@app.command()
def edgeshard(
    *,
    rows: Annotated[
        list[str] | None,
        typer.Option(help='Only rows with all these words, like "7b edgeshard ms_per_token"; may be given again.'),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long a row runs, about.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one line of JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write the JSON to.", show_default=False)] = None,
    list_rows: Annotated[bool, typer.Option("--list", help="Only name the rows that fit.")] = False,
) -> None:
    """EdgeShard's 15 devices (arXiv 2405.14371) as 15 agents that take its times: Table IV, predicted and measured."""
    import sys
    import tempfile
    from datetime import datetime, timezone

    from edgectl.edgeshard_bench import row_name, run_edgeshard, runnable
    from edgectl.edgeshard_report import describe_edgeshard, document
    from edgectl.failures import ExitCode
    from edgectl.local_processes import ProcessFailed
    from edgectl.output import CommandFailure, emit, emit_json, say, write_json
    from planner.reproduction import table_iv

    chosen = runnable(table_iv(), rows or ())
    if not chosen:
        raise typer.BadParameter(f"no row that fits is called {' or '.join(rows or ())}; --list names them")
    if list_rows:
        emit("\n".join(map(row_name, chosen)))
        return
    try:
        with tempfile.TemporaryDirectory(prefix="edgectl-bench-") as directory:
            measured = run_edgeshard(Path(directory), chosen, seconds, say)
    except ProcessFailed as problem:
        raise CommandFailure(ExitCode.FAILURE, str(problem)) from problem
    found = document(measured, sys.argv, datetime.now(timezone.utc))
    if as_json:
        emit_json(found)
    else:
        emit(describe_edgeshard(measured))
    if out is not None:
        # Last: minutes of measuring are not lost to a directory that is missing.
        write_json(out, found)
