"""`edgectl reproduce`: papers' tables and figures computed here, beside what they printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgectl.one_thread import use_one_thread

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


BUNDLED_MODEL = Path(__file__).parents[2] / "examples" / "models" / "wiki-32l"
"""Of a checkout; what is installed from a wheel has none."""


@app.command()
def splitting(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small one, to see in minutes that everything works.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.md, figures and data.")] = Path("splitting"),
    seeds: Annotated[int | None, typer.Option(help="Of every comparison.", show_default="5, quick 2")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds of an earlier study.")] = False,
    processes: Annotated[
        int | None, typer.Option(help="That train side by side.", min=1, max=64, show_default="one per core")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Directory of a model with 32 layers.", show_default="the bundled wiki-32l")
    ] = str(BUNDLED_MODEL),
    picture: Annotated[Literal["svg", "png"], typer.Option("--format", help="Of the figures.")] = "svg",
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one line of JSON.")] = False,
) -> None:
    """Adaptive layer splitting (arXiv 2406.02616): channel, surrogate, PPO and what they are held against.

    The full study takes about 40 minutes on two cores; what is finished is kept, and --resume goes on with it.
    """
    use_one_thread()
    import json

    from agent.errors import ConfigError
    from edgectl.output import emit, emit_json, progress_bar, say
    from edgectl.splitting.plot import plot_study, require_matplotlib
    from edgectl.splitting.report import report_markdown, study_as_json, summary_text
    from edgectl.splitting.runs import write_whole
    from edgectl.splitting.study import StudySettings, run_study

    require_matplotlib()
    if model == str(BUNDLED_MODEL) and not BUNDLED_MODEL.is_dir():
        raise ConfigError(f"{BUNDLED_MODEL.name} lies in examples/models of a checkout only; name one with --model")
    settings = StudySettings(model=model, out=out, quick=quick, seeds=seeds, resume=resume, processes=processes)
    study = run_study(settings, progress_bar)
    pictures = plot_study(study.sections, out, picture)
    write_whole(out / "report.md", report_markdown(study, pictures, out))
    write_whole(out / "data.json", json.dumps(study_as_json(study), ensure_ascii=False, indent=1) + "\n")
    if as_json:
        emit_json(study_as_json(study))
    else:
        emit(summary_text(study))
    say(f"wrote {out / 'report.md'}, {out / 'data.json'} and {len(pictures)} figures")
