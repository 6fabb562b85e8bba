"""`edgectl eval`: what a bad radio costs a model, measured on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgectl.commands.model_options import BlockSize, Boundary, Quantize, WireCodec
from planner.channel import Concealment, Granularity, Protection

if TYPE_CHECKING:
    from edgectl.config import ClusterConfig

DEFAULT_LOSSES = "0,0.01,0.05,0.1,0.2,0.3"

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
        typer.Option(help="Layers before the hop. Default: 1, 2, 4, … and the last possible.", show_default=False),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help=f"Loss probabilities. Default: {DEFAULT_LOSSES}.", show_default=False)
    ] = None,
    m: Annotated[
        str | None, typer.Option("--m", help="Nakagami shapes: loss and gains follow from them.", show_default=False)
    ] = None,
    fading: Annotated[
        Literal["none", "nakagami"], typer.Option(help="Gains that go with the losses of --loss.")
    ] = "none",
    equalised: Annotated[bool, typer.Option("--equalised", help="Under fading, the receiver undoes the gain.")] = False,
    sigma: Annotated[
        str, typer.Option(help="Standard deviations of Gaussian noise, as the hidden states count.")
    ] = "0",
    snr_db: Annotated[
        str | None, typer.Option(help="Noise by each token's own mean square instead, in dB.", show_default=False)
    ] = None,
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
    tokens: Annotated[int, typer.Option(min=0, help="Tokens of the text; 0: all of it.")] = 8192,
    window: Annotated[int, typer.Option(help="Tokens that are scored together; the first is not.")] = 256,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text. Default: a slice of WikiText-2's test split.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep measurements in; the same again goes on.", show_default=False)
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="cluster.toml whose devices share the work.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw, .svg or .png.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per model.")] = False,
) -> None:
    """Perplexity against split, loss and noise, with 95 % intervals.

    Lists have commas; 0.5..3 stands for six numbers from the one to the other.
    """
    from edgectl.number_lists import numbers
    from edgectl.output import emit_json, progress_bar, show
    from edgectl.perplexity import MeasuredText, default_splits
    from edgectl.perplexity_plot import check_picture, plot_perplexity
    from edgectl.perplexity_report import describe_collected, found_as_json
    from edgectl.planning import DEFAULT_BLOCK_SIZE
    from edgectl.quality_collect import CollectSettings, check_settings, collect_records, kept_in
    from edgectl.quality_points import ChannelKind, ModelKind, Runs, grid

    if plot is not None:
        check_picture(plot)
    if m is not None and loss is not None:
        raise typer.BadParameter("the losses follow from --m; name one of the two", param_hint="--loss")
    channel = ChannelKind(
        granularity=granularity,
        packet_bytes=packet_bytes,
        interleaved=interleaved,
        concealment=mitigation,
        protection=protection,
        equalised=equalised,
    )
    kind = ModelKind(quantization=quantize, block_size=block_size or DEFAULT_BLOCK_SIZE, boundary=boundary, codec=codec)
    devices = _cluster(cluster)
    asked = []
    for each in model:
        points = grid(
            default_splits(each) if splits is None else numbers("--splits", splits, int),
            numbers("--loss", loss or DEFAULT_LOSSES, float),
            numbers("--sigma", sigma, float),
            shapes=None if m is None else numbers("--m", m, float),
            snrs_db=None if snr_db is None else numbers("--snr-db", snr_db, float),
            fading=fading,
        )
        settings = CollectSettings(
            model=each,
            points=points,
            channel=channel,
            kind=kind,
            text=MeasuredText(path=text, tokens=tokens or None, window=window),
            runs=Runs(count=runs, seed=seed),
        )
        check_settings(settings)
        asked.append(settings)
    found = []
    for settings in asked:
        with progress_bar(f"perplexity of {settings.model}") as progress:
            kept = None if out is None else kept_in(out, settings.model)
            found.append((settings, collect_records(settings, kept, progress, devices)))
    if as_json:
        for settings, collected in found:
            emit_json(found_as_json(settings, collected))
    else:
        show("\n\n".join(describe_collected(settings, collected) for settings, collected in found))
    if plot is not None:
        plot_perplexity([collected for _, collected in found], plot)


@app.command()
def calibrate(
    *,
    model: Annotated[str, typer.Option(help="Model directory, or owner/name on the hub.")],
    splits: Annotated[
        str | None, typer.Option(help="Layers before the hop. Default: all but the last.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text. Default: a slice of WikiText-2's validation.", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens of the text; 0: all of it.")] = 16_384,
    window: Annotated[int, typer.Option(help="Tokens that are run together.")] = 256,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: beside the model's directory.", show_default=False)
    ] = None,
) -> None:
    """Measure what hidden states usually are, so that receivers can mend what was lost.

    Copy the file to the same place on every device.
    """
    from edgectl.calibrating import calibrate_model, calibration_subject
    from edgectl.number_lists import numbers
    from edgectl.output import mib, progress_bar, say

    subject = calibration_subject(model, text, tokens or None, window)
    layers = None if splits is None else numbers("--splits", splits, int)
    with progress_bar(f"calibrating {subject.model.name}") as progress:
        path, size_bytes = calibrate_model(subject, layers, out, progress)
    say(f"wrote {path}, {mib(size_bytes)}")


def _cluster(path: Path | None) -> ClusterConfig | None:
    """The configuration of the cluster that shares the work; None without one."""
    if path is None:
        return None
    import os

    from agent.log import configure
    from edgectl.config import load_config

    configure("warning", process="coordinator")
    return load_config(path, os.environ)
