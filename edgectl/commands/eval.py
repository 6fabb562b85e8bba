"""`edgectl eval`: what a bad radio costs a model, measured on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from edgectl.commands.model_options import BlockSize, Boundary, Quantize, WireCodec
from planner.channel import Concealment, Granularity, Protection

if TYPE_CHECKING:
    from edgectl.config import ClusterConfig
    from edgectl.quality.collect import Collected, CollectSettings

Fading = Literal["none", "nakagami"]

DEFAULT_LOSSES = "0,0.01,0.05,0.1,0.2,0.3"

app = typer.Typer(no_args_is_help=True, help="What a bad radio costs a model, measured on a text.")


@app.callback()
def _group() -> None:
    """What a bad radio costs a model, measured on a text."""


def _some(text: str, *names: str) -> Any:
    """An option without a default that is shown."""
    return typer.Option(*names, help=text, show_default=False)


Splits = Annotated[str | None, _some("Layers before the hop. Default: 1, 2, 4, … and the last possible.")]
Losses = Annotated[str | None, _some(f"Loss probabilities. Default: {DEFAULT_LOSSES}.")]
Shapes = Annotated[str | None, _some("Nakagami shapes: losses and gains follow from them.", "--m")]
Fades = Annotated[Fading, typer.Option(help="Gains that go with the losses of --loss.")]
Equalised = Annotated[bool, typer.Option("--equalised", help="Under fading, the receiver undoes the gain.")]
Sigmas = Annotated[str, typer.Option(help="Standard deviations of Gaussian noise, as the hidden states count.")]
Snrs = Annotated[str | None, _some("Noise by each token's own mean square instead, in dB.")]
Lost = Annotated[Granularity, typer.Option(help="What is lost at once.")]
PacketBytes = Annotated[int, typer.Option(help="Payload of a packet.")]
Interleaved = Annotated[bool, typer.Option("--interleaved", help="A packet's elements lie far apart.")]
Mitigation = Annotated[Concealment, typer.Option(help="What stands in for what is lost.")]
Protected = Annotated[Protection, typer.Option(help="What is sent twice of the strongest elements.")]
RunCount = Annotated[int, typer.Option(help="Seeded runs per point.")]
Seed = Annotated[int, typer.Option(help="Of the first run.")]
Tokens = Annotated[int, typer.Option(min=0, help="Tokens of the text; 0: all of it.")]
Window = Annotated[int, typer.Option(help="Tokens that are scored together; the first is not.")]
Text = Annotated[Path | None, _some("UTF-8 text. Default: a slice of WikiText-2's test split.")]
Kept = Annotated[Path | None, _some("Folder to keep measurements in; the same again goes on.")]
Cluster = Annotated[Path | None, _some("cluster.toml whose devices share the work.")]
Plot = Annotated[Path | None, _some("Picture to draw, .svg or .png.")]


@app.command()
def ppl(
    *,
    model: Annotated[list[str], typer.Option(help="Model directory, or owner/name on the hub. May be repeated.")],
    splits: Splits = None,
    loss: Losses = None,
    m: Shapes = None,
    fading: Fades = "none",
    equalised: Equalised = False,
    sigma: Sigmas = "0",
    snr_db: Snrs = None,
    granularity: Lost = "element",
    packet_bytes: PacketBytes = 1200,
    interleaved: Interleaved = False,
    mitigation: Mitigation = "zero",
    protection: Protected = "none",
    codec: WireCodec = None,
    quantize: Quantize = "fp32",
    block_size: BlockSize = None,
    boundary: Boundary = "fp16",
    runs: RunCount = 5,
    seed: Seed = 0,
    tokens: Tokens = 8192,
    window: Window = 256,
    text: Text = None,
    out: Kept = None,
    cluster: Cluster = None,
    plot: Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per model.")] = False,
) -> None:
    """Perplexity against split, loss and noise, with 95 % intervals.

    Lists have commas; 0.5..3 stands for six numbers from the one to the other.
    """
    from edgectl.planning import DEFAULT_BLOCK_SIZE
    from edgectl.quality.collect import CollectSettings
    from edgectl.quality.perplexity import MeasuredText
    from edgectl.quality.points import ChannelKind, ModelKind, Runs

    if m is not None and loss is not None:
        raise typer.BadParameter("the losses follow from --m; name one of the two", param_hint="--loss")
    settings = CollectSettings(
        model="",
        points=(),
        channel=ChannelKind(
            granularity=granularity,
            packet_bytes=packet_bytes,
            interleaved=interleaved,
            concealment=mitigation,
            protection=protection,
            equalised=equalised,
        ),
        kind=ModelKind(
            quantization=quantize, block_size=block_size or DEFAULT_BLOCK_SIZE, boundary=boundary, codec=codec
        ),
        text=MeasuredText(path=text, tokens=tokens or None, window=window),
        runs=Runs(count=runs, seed=seed),
    )
    grid_asked = _Grid(splits, loss or DEFAULT_LOSSES, m, fading, sigma, snr_db)
    found = _measured([_settings_for(each, grid_asked, settings) for each in model], out, cluster, plot)
    _show(found, as_json=as_json)
    if plot is not None:
        from edgectl.quality.plot import plot_perplexity

        plot_perplexity([collected for _, collected in found], plot)


class _Grid(NamedTuple):
    """The points as they were asked for."""

    splits: str | None
    loss: str
    m: str | None
    fading: Fading
    sigma: str
    snr_db: str | None


def _settings_for(model: str, asked: _Grid, settings: CollectSettings) -> CollectSettings:
    """What is measured on one model. Raises ConfigError."""
    from dataclasses import replace

    from edgectl.quality.number_lists import numbers
    from edgectl.quality.perplexity import default_splits
    from edgectl.quality.points import grid

    points = grid(
        default_splits(model) if asked.splits is None else numbers("--splits", asked.splits, int),
        numbers("--loss", asked.loss, float),
        numbers("--sigma", asked.sigma, float),
        shapes=None if asked.m is None else numbers("--m", asked.m, float),
        snrs_db=None if asked.snr_db is None else numbers("--snr-db", asked.snr_db, float),
        fading=asked.fading,
    )
    return replace(settings, model=model, points=points)


def _measured(
    asked: list[CollectSettings], out: Path | None, cluster: Path | None, plot: Path | None
) -> list[tuple[CollectSettings, Collected]]:
    """What was asked for, all of it checked before anything is measured."""
    from edgectl.output import progress_bar
    from edgectl.quality.collect import check_settings, collect_records, kept_in
    from edgectl.quality.plot import check_picture

    if plot is not None:
        check_picture(plot)
    devices = _cluster(cluster)
    for settings in asked:
        check_settings(settings)
    found = []
    for settings in asked:
        with progress_bar(f"perplexity of {settings.model}") as progress:
            kept = None if out is None else kept_in(out, settings.model)
            found.append((settings, collect_records(settings, kept, progress, devices)))
    return found


def _show(found: list[tuple[CollectSettings, Collected]], *, as_json: bool) -> None:
    from edgectl.output import emit_json, show
    from edgectl.quality.report import describe_collected, found_as_json

    if as_json:
        for settings, collected in found:
            emit_json(found_as_json(settings, collected))
    else:
        show("\n\n".join(describe_collected(settings, collected) for settings, collected in found))


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
    from edgectl.output import mib, progress_bar, say
    from edgectl.quality.calibrating import calibrate_model, calibration_subject
    from edgectl.quality.number_lists import numbers

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
