"""`edgectl profile`: measure the devices and links of a cluster, and look at what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.commands.model_options import BlockSize, Boundary, Quantize, WireCodec

if TYPE_CHECKING:
    from edgectl.config import ClusterConfig
    from edgectl.measurements import Settings
    from edgectl.profile_store import StoredProfile
    from planner.model_spec import ModelSpec
    from planner.types import Quantization

app = typer.Typer(
    invoke_without_command=True,
    help="Measure every device and link of the cluster; show, compare and export what was measured.",
)

Cluster = Annotated[Path | None, typer.Option(help="The cluster.toml to measure.", show_default=False)]
File = Annotated[Path | None, typer.Argument(help="A profile. Default: the newest.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="The profile as one line of JSON.")]


@app.callback()
def profile(
    context: typer.Context,
    *,
    cluster: Cluster = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory or a name of the catalogue. Default: tinyllama-1.1b.")
    ] = None,
    quantize: Quantize = "fp32",
    block_size: BlockSize = None,
    boundary: Boundary = "fp16",
    codec: WireCodec = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Measure this device only; the others are taken from the newest profile. May be repeated."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points, about a minute for three devices.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.5, max=3600, help="About how long each device is measured.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds a missing device is waited for.")] = 15.0,
    out: Annotated[Path | None, typer.Option(help="Where to write it. Default: the state directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure every device and link of the cluster; show, compare and export what was measured."""
    if context.invoked_subcommand is not None:
        return
    import os

    from agent.log import configure
    from edgectl.config import find_cluster_file, load_config
    from edgectl.measurements import settings_for
    from edgectl.output import say
    from edgectl.planning import DEFAULT_BLOCK_SIZE
    from edgectl.profiled_model import DEFAULT_MODEL, profiled_model

    config = load_config(find_cluster_file(cluster, os.environ), os.environ)
    wanted = _wanted(config, device)
    if model is None:
        say(f"no --model: layers of the shape of {DEFAULT_MODEL} are measured")
    measured = profiled_model(model or DEFAULT_MODEL)
    settings = settings_for(
        measured.name,
        measured.config,
        measured.spec,
        quantization=quantize,
        block_size=block_size or DEFAULT_BLOCK_SIZE,
        boundary=boundary,
        codec=codec,
        quick=quick,
        seconds=seconds,
    )
    configure("warning", process="coordinator")
    _measure(config, settings, measured.spec, wanted, wait_s=wait, merge=bool(device), out=out, as_json=as_json)


@app.command()
def show(
    file: File = None,
    *,
    cluster: Cluster = None,
    model: Annotated[str | None, typer.Option(help="The newest profile of this model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a profile as tables."""
    from edgectl.output import show
    from edgectl.profile_report import describe_profile

    stored = _stored(file, cluster, model)
    if as_json:
        _emit_profile(stored.path)
    else:
        show(describe_profile(stored.profile))
        _warn_if_stale(stored)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="A profile.")],
    after: Annotated[Path | None, typer.Argument(help="Another one. Default: the newest.", show_default=False)] = None,
    *,
    cluster: Cluster = None,
) -> None:
    """Print what changed from one profile to another by more than 5 %."""
    from edgectl.output import show
    from edgectl.profile_report import describe_difference
    from edgectl.profile_store import load_profile

    first = load_profile(before)
    show(describe_difference(first, _stored(after, cluster, first.model).profile))


@app.command()
def export(
    file: File = None,
    *,
    cluster: Cluster = None,
    out: Annotated[Path | None, typer.Option(help="Where to write it. Default: stdout.")] = None,
) -> None:
    """Write every measured point as CSV."""
    from agent.errors import ConfigError
    from edgectl.output import emit
    from edgectl.profile_report import profile_csv

    text = profile_csv(_stored(file, cluster, None).profile)
    if out is None:
        emit(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"--out {out}: {problem.strerror}") from problem


def _measure(
    config: ClusterConfig,
    settings: Settings,
    spec: ModelSpec,
    wanted: tuple[str, ...],
    *,
    wait_s: float,
    merge: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    import asyncio
    import os

    from edgectl.config import state_directory
    from edgectl.output import say, show
    from edgectl.profile_report import describe_profile
    from edgectl.profile_store import FOLDER, save_profile
    from edgectl.profiling_run import measure_cluster, profile_of

    directory = state_directory(config.coordinator, os.environ) / FOLDER
    before = _mergeable(directory, settings, spec) if merge else None
    described = [device.name for device in before.profile.devices] if before is not None else []
    known = [name for name in config.device_names() if name in described and name not in wanted]
    profiling = asyncio.run(measure_cluster(config, settings, wanted, wait_s=wait_s, known=known))
    result = profile_of(profiling, spec, before.profile if before is not None else None)
    path = save_profile(result, out if out is not None else directory)
    if as_json:
        _emit_profile(path)
    else:
        show(describe_profile(result))
    say(f"wrote {path}")


def _wanted(config: ClusterConfig, devices: list[str] | None) -> tuple[str, ...]:
    """Devices to measure. Raises ConfigError for a cluster without any, BadParameter for unknown ones."""
    from agent.errors import ConfigError

    names = config.device_names()
    if not names:
        raise ConfigError("cluster.toml lists no device; `edge-agent init` on a device prints its block")
    unknown = [name for name in devices or () if name not in names]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: cluster.toml has {', '.join(names)}", param_hint="--device")
    return tuple(name for name in names if not devices or name in devices)


def _mergeable(directory: Path, settings: Settings, spec: ModelSpec) -> StoredProfile | None:
    """The newest profile that the measured device can be put into: same model, same coding."""
    from edgectl.output import say
    from edgectl.profile_store import newest_profile

    newest = newest_profile(directory, settings.model, settings.quantization)
    if newest is None:
        return None
    fields = ("quantization", "block_size", "boundary")
    same = all(getattr(newest.profile, name) == getattr(settings, name) for name in fields)
    if same and newest.profile.spec == spec:
        return newest
    say(f"{newest.path} was measured with other options; nothing of it is taken over")
    return None


def _stored(
    file: Path | None, cluster: Path | None, model: str | None, quantization: Quantization | None = None
) -> StoredProfile:
    """The profile of a file, else the newest. Raises CommandFailure when there is none."""
    import os

    from edgectl.failures import ExitCode
    from edgectl.output import CommandFailure
    from edgectl.profile_store import StoredProfile, load_profile, newest_profile, profiles_directory

    if file is not None:
        return StoredProfile(file, load_profile(file))
    directory = profiles_directory(os.environ, cluster)
    newest = newest_profile(directory, model, quantization)
    if newest is None:
        of_model = f" of {model}" if model is not None else ""
        raise CommandFailure(ExitCode.CONFIG, f"no profile{of_model} in {directory}", "`edgectl profile` makes one")
    return newest


def _warn_if_stale(stored: StoredProfile) -> None:
    from datetime import datetime, timezone
    from importlib.metadata import version

    from edgectl.output import say
    from edgectl.profile_store import staleness

    for reason in staleness(stored.profile, {}, version=version("edgectl"), at=datetime.now(timezone.utc)):
        say(f"stale: {reason}")


def _emit_profile(path: Path) -> None:
    import json

    from edgectl.output import emit_json

    emit_json(json.loads(path.read_text(encoding="utf-8")))
