"""`edgectl rl`: measure a model's quality under loss, fit a surrogate to it, train a policy, value it, export it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgectl.commands.rl_collect import collect
from edgectl.one_thread import use_one_thread

app = typer.Typer(no_args_is_help=True, help="Learn where to split a model as the radio changes.")

app.command()(collect)

QualityFile = Annotated[
    Path | None,
    typer.Option(help="Table of `rl collect`. Default: the surface published with the paper.", show_default=False),
]


@app.callback()
def _group() -> None:
    """Learn where to split a model as the radio changes."""


@contextmanager
def _files_named() -> Iterator[None]:
    """What is wrong with a file we were given is a matter of configuration."""
    from agent.errors import ConfigError
    from rl.policy_card import BadPolicy
    from rl.quality import BadQualityTable
    from rl.surrogate import BadSurrogate

    try:
        yield
    except (BadPolicy, BadQualityTable, BadSurrogate) as problem:
        raise ConfigError(str(problem)) from problem


@app.command()
def fit(
    *,
    quality: QualityFile = None,
    out: Annotated[Path, typer.Option(help="File to write the surrogate to.")],
    kind: Annotated[
        Literal["best", "authors", "smooth-gain", "smooth-ppl"],
        typer.Option(help="The authors' 2-128-128-1, a smoother one of gains or of perplexities, or the best of them."),
    ] = "best",
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and folds.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Fit a network to measured perplexities and judge it on points it has not seen."""
    use_one_thread()
    from edgectl.learning.surrogate_report import describe_fit, fit_as_json, fit_best, write_surrogate
    from edgectl.output import emit_json, progress_bar, show

    with _files_named(), progress_bar("cross-validation") as progress:
        found = fit_best(quality, kind, folds, seed, progress)
    write_surrogate(out, found)
    if as_json:
        emit_json(fit_as_json(found))
    else:
        show(describe_fit(found))


@app.command()
def train(
    *,
    quality: QualityFile = None,
    surrogate: Annotated[
        Path | None, typer.Option(help="Rewards from this surrogate, not from the table itself.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Policy (.onnx) or run (.json) to write.")],
    world: Annotated[
        Literal["channel", "drift", "harder"],
        typer.Option(help="The paper's fading, the authors' drifting loss, or one where moves cost something."),
    ] = "channel",
    learner: Annotated[Literal["ppo", "a2c", "dqn"], typer.Option(help="Of Stable-Baselines3.")] = "ppo",
    settings: Annotated[
        Literal["tuned", "authors"], typer.Option(help="Of PPO: ours, or those of the paper's authors.")
    ] = "tuned",
    actions: Annotated[int, typer.Option(help="Moves: 3 (by one split), 5 (two) or 9 (four).")] = 9,
    steps: Annotated[int, typer.Option(min=1, max=100_000_000, help="Of training, per seed.")] = 240_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the first run.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs; the best is written.")] = 1,
    alpha: Annotated[float | None, typer.Option(help="Weight of quality. Default: 10.", show_default=False)] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of load. Default: 1.", show_default=False)] = None,
    latency: Annotated[
        float | None, typer.Option(help="Weight of a millisecond per token, --world harder.", show_default=False)
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Weight of a joule per token, --world harder.", show_default=False)
    ] = None,
    logs: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Train a policy that moves the split of a model as the radio changes."""
    use_one_thread()
    from edgectl.learning.run import check_name, write_run
    from edgectl.learning.training import TrainRequest, describe_training, train_best, training_as_json
    from edgectl.output import emit_json, progress_bar, say, show

    check_name(out)
    request = TrainRequest(
        *(quality, surrogate, world, learner, settings, actions, steps, seed, seeds),
        weights={"quality": alpha, "load": beta, "latency_per_ms": latency, "energy_per_j": energy},
        logs=logs,
    )
    with _files_named():
        with progress_bar(f"training {learner}") as progress:
            found = train_best(request, progress)
        write_run(out, found.best)
    say(f"wrote {out}")
    if as_json:
        emit_json(training_as_json(found))
    else:
        show(describe_training(found))


@app.command()
def evaluate(
    policies: Annotated[list[Path], typer.Argument(help="Policies or runs; several of one kind count as its seeds.")],
    *,
    quality: QualityFile = None,
    starts: Annotated[int, typer.Option(min=10, max=1_000_000, help="Episodes.")] = 5_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the starts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Hold policies against random moves, the best static split, a table look-up and dynamic programming."""
    use_one_thread()
    from edgectl.learning.comparison import compare, comparison_as_json, describe_comparison
    from edgectl.learning.training import contestants
    from edgectl.output import emit_json, show

    with _files_named():
        surface, world, grouped = contestants(policies, quality)
        found = compare(surface, world, grouped, starts, seed)
    if as_json:
        emit_json(comparison_as_json(found, starts))
    else:
        show(describe_comparison(found, starts))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run (.json) of `rl train`.")],
    *,
    out: Annotated[Path, typer.Option(help="Policy (.onnx) to write.")],
    quality: Annotated[
        Path | None, typer.Option(help="Table to carry, of the same model and splits.", show_default=False)
    ] = None,
) -> None:
    """Make of a run the policy that `edgectl serve --policy` takes."""
    from edgectl.learning.run import load_run, write_run
    from edgectl.learning.training import with_table
    from edgectl.output import say

    with _files_named():
        found = load_run(run)
        write_run(out, found if quality is None else with_table(found, quality))
    say(f"wrote {out}")
