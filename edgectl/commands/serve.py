"""`edgectl serve`: the coordinator, until it is told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgectl.commands.model_options import BlockSize, Boundary, Context, Model, Quantize, WireCodec


def serve(
    model: Model,
    *,
    cluster: Annotated[Path | None, typer.Option(help="The cluster.toml to serve.", show_default=False)] = None,
    quantize: Quantize = "fp32",
    block_size: BlockSize = None,
    boundary: Boundary = "fp16",
    codec: WireCodec = None,
    context: Context = None,
    source: Annotated[str | None, typer.Option(help="Device that holds the tokens. Default: the first.")] = None,
    devices: Annotated[str | None, typer.Option(help="Devices to use, separated by commas. Default: all.")] = None,
    min_devices: Annotated[int | None, typer.Option(help="Begin with this many when no more come.")] = None,
    http: Annotated[str | None, typer.Option(help="host:port of the API, instead of the file's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say on stdout, in JSON, when and where it serves.")] = False,
) -> None:
    """Load a model onto the devices and answer OpenAI's API with it."""
    import asyncio
    import os

    from agent.log import configure
    from edgectl.config import find_cluster_file, load_config
    from edgectl.planning import DEFAULT_BLOCK_SIZE, ServingOptions
    from edgectl.serving import Serving, serve_cluster

    options = ServingOptions(
        quantization=quantize,
        block_size=block_size or DEFAULT_BLOCK_SIZE,
        boundary=boundary,
        codec=codec,
        context=context,
        source=source,
    )
    config = load_config(find_cluster_file(cluster, os.environ), os.environ, {"http": http})
    chosen = tuple(name.strip() for name in devices.split(",")) if devices is not None else config.device_names()
    try:
        serving = Serving.prepare(config, model, options, chosen, min_devices)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    configure("warning", process="coordinator")
    asyncio.run(serve_cluster(serving, as_json=as_json))
