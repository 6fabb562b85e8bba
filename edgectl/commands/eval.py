"""`edgectl eval`: what a bad radio costs a model, measured on a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from edgectl.commands.model_options import BlockSize, Boundary, Quantize, WireCodec
from planner.channel import Concealment, Granularity, Protection

DEFAULT_SPLITS = "1,2,4,8,16,24,31"
DEFAULT_LOSSES = "0,0.01,0.05,0.1,0.2,0.3"

Number = TypeVar("Number", int, float)

app = typer.Typer(no_args_is_help=True, help="What a bad radio costs a model, measured on a text.")


@app.callback()
def _group() -> None:
    """What a bad radio costs a model, measured on a text."""


@app.command()
def ppl(
    *,
    model: Annotated[list[str], typer.Option(help="Model directory, or owner/name on the hub. May be repeated.")],
    splits: Annotated[
        str | None,
        typer.Option(help="Layers before the hop, with commas. Default: a doubling set.", show_default=False),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help=f"Loss probabilities. Default: {DEFAULT_LOSSES}.", show_default=False)
    ] = None,
    sigma: Annotated[str, typer.Option(help="Standard deviations of Gaussian noise.")] = "0",
    granularity: Annotated[Granularity, typer.Option(help="What is lost at once.")] = "element",
    packet_bytes: Annotated[int, typer.Option(help="Payload of a packet.")] = 1200,
    interleaved: Annotated[bool, typer.Option("--interleaved", help="A packet's elements lie far apart.")] = False,
    mitigation: Annotated[Concealment, typer.Option(help="What stands in for what is lost.")] = "zero",
    protection: Annotated[Protection, typer.Option(help="What is sent twice of the strongest elements.")] = "none",
    codec: WireCodec = None,
    quantize: Quantize = "fp32",
    block_size: BlockSize = None,
    boundary: Boundary = "fp16",
    runs: Annotated[int, typer.Option(help="Seeded runs per point.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the first run.")] = 0,
    tokens: Annotated[int, typer.Option(help="Tokens of the text; 0: all of it.")] = 8192,
    window: Annotated[int, typer.Option(help="Tokens that are scored together; the first is not.")] = 256,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text. Default: a slice of WikiText-2's test split.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Perplexity against split, loss and noise, with 95 % intervals."""
    from edgectl.output import emit_json, progress_bar, show
    from edgectl.perplexity import MeasuredText
    from edgectl.perplexity_report import describe_collected, found_as_json
    from edgectl.quality_collect import CollectSettings, collect_records
    from edgectl.quality_points import ChannelKind, ModelKind, Runs, grid

    points = grid(
        numbers("--splits", splits or DEFAULT_SPLITS, int),
        numbers("--loss", loss or DEFAULT_LOSSES, float),
        numbers("--sigma", sigma, float),
    )
    found = []
    for each in model:
        settings = CollectSettings(
            model=each,
            points=points,
            channel=ChannelKind(
                granularity=granularity,
                packet_bytes=packet_bytes,
                interleaved=interleaved,
                concealment=mitigation,
                protection=protection,
            ),
            kind=ModelKind(quantization=quantize, block_size=block_size or 128, boundary=boundary, codec=codec),
            text=MeasuredText(path=text, tokens=tokens or None, window=window),
            runs=Runs(count=runs, seed=seed),
        )
        with progress_bar(f"perplexity of {each}") as progress:
            found.append((settings, collect_records(settings, None, progress)))
    if as_json:
        for settings, collected in found:
            emit_json(found_as_json(settings, collected))
    else:
        show("\n\n".join(describe_collected(settings, collected) for settings, collected in found))


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """A list with commas. Raises BadParameter naming what is no number."""
    found = []
    for part in text.split(","):
        try:
            found.append(kind(part.strip()))
        except ValueError as problem:
            raise typer.BadParameter(f"{part.strip()!r} in {text!r} is no number", param_hint=option) from problem
    return tuple(found)
