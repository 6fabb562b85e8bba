"""`edgectl serve`: the coordinator, until it is told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgectl.adaptive.choice import ControllerName
from edgectl.commands.model_options import BlockSize, Boundary, Context, Model, Quantize, WireCodec
from planner.types import Pipeline

PLANNED = ("quantize", "block_size", "boundary", "codec", "context", "source", "devices", "min_devices", "sessions")
"""Options that a plan has settled already."""
ADAPTIVE = ("controller", "shadow", "decide_every", "dwell", "move_weight")
"""Options that mean nothing without --policy."""

Sessions = Annotated[int | None, typer.Option(help="Sessions at a time. Default: 4, or what there is memory for.")]
Timing = Annotated[Pipeline, typer.Option(help="When micro-batches take steps; the others are there to compare with.")]
Policy = Annotated[
    Path | None,
    typer.Option(help="Let this policy (.onnx) or quality table (.json) move split points.", show_default=False),
]
Controller = Annotated[
    ControllerName | None, typer.Option(help="How --policy is used. Default: as what it is.", show_default=False)
]
Shadow = Annotated[bool, typer.Option("--shadow", help="Only say what --policy would move.")]
DecideEvery = Annotated[int, typer.Option(help="Tokens of a session between two decisions.")]
Dwell = Annotated[int, typer.Option(help="Tokens of a session between two moves at least.")]
MoveWeight = Annotated[
    float, typer.Option(help="Reward that a move costs which takes as long as --decide-every tokens.")
]


def serve(
    options: typer.Context,
    model: Model,
    *,
    cluster: Annotated[Path | None, typer.Option(help="The cluster.toml to serve.", show_default=False)] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan of `edgectl plan --out`, executed as it is.", show_default=False)
    ] = None,
    quantize: Quantize = "fp32",
    block_size: BlockSize = None,
    boundary: Boundary = "fp16",
    codec: WireCodec = None,
    context: Context = None,
    source: Annotated[str | None, typer.Option(help="Device that holds the tokens. Default: the first.")] = None,
    devices: Annotated[str | None, typer.Option(help="Devices to use, separated by commas. Default: all.")] = None,
    min_devices: Annotated[int | None, typer.Option(help="Begin with this many when no more come.")] = None,
    sessions: Sessions = None,
    pipeline: Timing = "no-bubbles",
    policy: Policy = None,
    controller: Controller = None,
    shadow: Shadow = False,
    decide_every: DecideEvery = 16,
    dwell: Dwell = 32,
    move_weight: MoveWeight = 0.1,
    http: Annotated[str | None, typer.Option(help="host:port of the API, instead of the file's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say on stdout, in JSON, when and where it serves.")] = False,
) -> None:
    """Load a model onto the devices and answer OpenAI's API with it."""
    import asyncio
    import os

    from agent.log import configure
    from edgectl.adaptive.choice import AdaptiveChoice
    from edgectl.adaptive.guards import Limits
    from edgectl.config import find_cluster_file, load_config
    from edgectl.planning import DEFAULT_BLOCK_SIZE, ServingOptions, load_plan
    from edgectl.serving import Serving, serve_cluster

    config = load_config(find_cluster_file(cluster, os.environ), os.environ, {"http": http})
    chosen = tuple(name.strip() for name in devices.split(",")) if devices is not None else config.device_names()
    try:
        choice = None
        if policy is None:
            _refuse_without_policy(options)
        else:
            limits = Limits(decide_every, dwell, move_weight=move_weight, is_shadow=shadow)
            choice = AdaptiveChoice(policy, controller, limits)
        if plan is not None:
            _refuse_planned(options)
            planned = load_plan(plan)
            quantize = planned.quantization
            serving = Serving.prepare_plan(config, model, planned, pipeline)
        else:
            settings = ServingOptions(
                quantization=quantize,
                block_size=block_size or DEFAULT_BLOCK_SIZE,
                boundary=boundary,
                codec=codec,
                context=context,
                source=source,
                sessions=sessions,
                pipeline=pipeline,
            )
            serving = Serving.prepare(config, model, settings, chosen, min_devices)
        if choice is not None:
            serving = serving.adapted(choice, quantize)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    configure("warning", process="coordinator")
    asyncio.run(serve_cluster(serving, as_json=as_json))


def _refuse_planned(options: typer.Context) -> None:
    """Raises ValueError for an option beside --plan that the plan has settled."""
    flags = _given(options, PLANNED)
    if flags:
        raise ValueError(f"{flags}: the plan says so already; leave it out, or plan again with it")


def _refuse_without_policy(options: typer.Context) -> None:
    """Raises ValueError for an option of --policy without it."""
    flags = _given(options, ADAPTIVE)
    if flags:
        raise ValueError(f"{flags}: nothing moves splits without --policy FILE")


def _given(options: typer.Context, names: tuple[str, ...]) -> str:
    """Flags of these options that stand on the command line."""
    # By name: the enumeration is click's, or the copy of it that newer versions of typer bring.
    sources = {name: options.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return ", ".join("--" + name.replace("_", "-") for name in given)
