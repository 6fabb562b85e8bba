"""`edgectl rl collect`: perplexities over loss, split and noise, into the table that rewards are read off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.commands.model_options import BlockSize, Quantize
from planner.channel import Concealment, Granularity

if TYPE_CHECKING:
    from edgectl.quality.collect import CollectSettings
    from rl.quality import QualityTable

DEFAULT_LOSSES = "0,0.02,0.06,0.1,0.14,0.18,0.22,0.3"
DEFAULT_SIGMA = "5"
RECORDS_SUFFIX = ".records.jsonl"


def collect(
    *,
    model: Annotated[str, typer.Option(help="Model directory, or owner/name on the hub.")],
    out: Annotated[Path, typer.Option(help="File to write the table to; measurements are kept beside it.")],
    splits: Annotated[
        str | None,
        typer.Option(help="Layers before the hop. Default: 1, 2, 4, … and the last possible.", show_default=False),
    ] = None,
    loss: Annotated[str, typer.Option(help="Loss probabilities; fading goes with them.")] = DEFAULT_LOSSES,
    sigma: Annotated[
        str, typer.Option(help="Standard deviations of Gaussian noise, as the hidden states count.")
    ] = DEFAULT_SIGMA,
    fading: Annotated[bool, typer.Option("--fading/--no-fading", help="Gains that go with the losses.")] = True,
    equalised: Annotated[bool, typer.Option("--equalised", help="The receiver undoes the gain.")] = False,
    granularity: Annotated[Granularity, typer.Option(help="What is lost at once.")] = "element",
    mitigation: Annotated[
        Concealment | None,
        typer.Option(
            help="What stands in for what is lost. Default: as served, lmmse where the model is calibrated, else "
            "rescale; zero is the paper's.",
            show_default=False,
        ),
    ] = None,
    quantize: Quantize = "fp32",
    block_size: BlockSize = None,
    runs: Annotated[int, typer.Option(help="Seeded runs per point.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the first run.")] = 0,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens of the text; 0: all of it.")] = 4096,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text. Default: a slice of WikiText-2's test split.", show_default=False)
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="cluster.toml whose devices share the work.", show_default=False)
    ] = None,
) -> None:
    """Measure the perplexities that rewards are made of; after an interruption the same command goes on."""
    from edgectl.output import say
    from edgectl.planning import DEFAULT_BLOCK_SIZE
    from edgectl.quality.collect import CollectSettings
    from edgectl.quality.number_lists import numbers
    from edgectl.quality.perplexity import MeasuredText, default_splits, served_concealment
    from edgectl.quality.points import ChannelKind, ModelKind, Runs, grid

    points = grid(
        default_splits(model) if splits is None else numbers("--splits", splits, int),
        numbers("--loss", loss, float),
        numbers("--sigma", sigma, float),
        fading="nakagami" if fading else "none",
    )
    if mitigation is None:
        mitigation = served_concealment(model, {point.split for point in points})
        say(f"what is lost is concealed by {mitigation}, as served; --mitigation names another way")
    settings = CollectSettings(
        model=model,
        points=points,
        channel=ChannelKind(granularity=granularity, concealment=mitigation, equalised=equalised),
        kind=ModelKind(quantization=quantize, block_size=block_size or DEFAULT_BLOCK_SIZE),
        text=MeasuredText(path=text, tokens=tokens or None),
        runs=Runs(count=runs, seed=seed),
    )
    table = _measured(settings, out, cluster)
    if table.not_finite:
        say(f"{table.not_finite} runs gave no number; they are kept and not averaged")
    say(f"wrote {out}: {len(table.records)} points of {table.model}")


def _measured(settings: CollectSettings, out: Path, cluster: Path | None) -> QualityTable:
    """Measures what is not kept beside `out`, and writes the table there. Raises ConfigError."""
    import os

    from agent.errors import ConfigError
    from edgectl.config import load_config
    from edgectl.output import progress_bar
    from edgectl.quality.collect import collect as measure
    from rl.quality import BadQualityTable

    kept = out.with_name(out.name + RECORDS_SUFFIX)
    try:
        with progress_bar(f"perplexity of {settings.model}") as progress:
            table = measure(settings, kept, progress, None if cluster is None else load_config(cluster, os.environ))
        out.write_text(table.to_json(), encoding="utf-8")
    except BadQualityTable as problem:
        raise ConfigError(str(problem)) from problem
    except OSError as problem:
        raise ConfigError(f"--out {out}: {problem.strerror}") from problem
    return table
