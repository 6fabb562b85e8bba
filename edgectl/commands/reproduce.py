"""`edgectl reproduce edgeshard`: a paper's tables and figures computed here, beside what it printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Compute a paper's results again and show them beside its own.")


@app.callback()
def _group() -> None:
    """Compute a paper's results again and show them beside its own."""


@app.command()
def edgeshard(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one line of JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Folder to draw Table IV and the figures into.", show_default=False)
    ] = None,
    picture: Annotated[Literal["svg", "png"], typer.Option("--format", help="Of the pictures.")] = "svg",
) -> None:
    """EdgeShard's Table IV (arXiv 2405.14371) beside ours, row by row, and its Figures 7 to 10."""
    from edgectl.output import emit, emit_json, say
    from edgectl.reproduction_report import describe_reproduction, reproduction_as_json
    from planner.reproduction import reproduce

    found = reproduce()
    if as_json:
        emit_json(reproduction_as_json(found))
    else:
        emit(describe_reproduction(found))
    if plot is not None:
        from edgectl.reproduction_plot import plot_reproduction

        for path in plot_reproduction(found, plot, picture):
            say(f"wrote {path}")
