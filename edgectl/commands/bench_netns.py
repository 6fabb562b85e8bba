"""`edgectl bench netns`: one model on devices of this machine that stand apart, three ways beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Milliseconds = Annotated[
    float, typer.Option(min=0, help="One way. In namespaces only where the kernel has netem.", show_default="0")
]


def bench_netns(
    model: Annotated[Path, typer.Argument(help="Directory of the model.", exists=True, file_okay=False)],
    *,
    ways: Annotated[str, typer.Option(help="Some of loopback, emulated and namespaces.")] = (
        "loopback,emulated,namespaces"
    ),
    devices: Annotated[int, typer.Option(min=1, max=16, help="Agents, each in a namespace.")] = 2,
    rate: Annotated[str, typer.Option(help='What leaves each device, like "10 Mbit". Empty: no limit.')] = "10 Mbit",
    burst_bytes: Annotated[int, typer.Option(min=0, help="What leaves at once after a pause.")] = 5000,
    latency_ms: Milliseconds = 0.0,
    quantize: Annotated[str, typer.Option(help="As `edgectl serve` takes it.")] = "fp32",
    codec: Annotated[str | None, typer.Option(help="Type on the wire. Default: fp16.", show_default=False)] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sessions at a time.")] = 1,
    sessions: Annotated[int, typer.Option(min=2, help="Sessions in all.")] = 3,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 32,
    output_tokens: Annotated[int, typer.Option(min=2)] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one line of JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write the JSON to.", show_default=False)] = None,
) -> None:
    """Put each agent into a network namespace of its own behind a token bucket, and hold emulated links against it.

    Needs root and the commands ip and tc; `--ways loopback,emulated` needs neither.
    """
    import tempfile

    from agent.errors import ConfigError
    from edgectl import netns_bench
    from edgectl.failures import ExitCode
    from edgectl.local_processes import ProcessFailed
    from edgectl.netns import NamespacesUnavailable, Uplink, check_machine
    from edgectl.output import CommandFailure, emit, emit_json, say, write_json

    chosen = [way for way in netns_bench.WAYS if way in ways.split(",")]
    unknown = set(ways.split(",")) - set(netns_bench.WAYS)
    if unknown:
        raise ConfigError(f"--ways {ways}: {', '.join(sorted(unknown))} is none of {', '.join(netns_bench.WAYS)}")
    setting = netns_bench.Setting(
        model=model.absolute(),
        devices=devices,
        uplink=Uplink(_bytes_per_s(rate), burst_bytes, latency_ms),
        serve=(
            *("--quantize", quantize, "--sessions", str(concurrency)),
            *(("--codec", codec) if codec else ()),
        ),
        concurrency=concurrency,
        sessions=sessions,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )
    try:
        if "namespaces" in chosen:
            check_machine()  # before a cluster is started for the other ways
        with tempfile.TemporaryDirectory(prefix="edgectl-bench-") as directory:
            rows = netns_bench.compare(chosen, setting, Path(directory), say)
    except NamespacesUnavailable as problem:
        raise CommandFailure(ExitCode.UNAVAILABLE, str(problem), "--ways loopback,emulated needs no root") from problem
    except ProcessFailed as problem:
        raise CommandFailure(ExitCode.FAILURE, str(problem)) from problem
    found = netns_bench.as_json(setting, rows)
    if as_json:
        emit_json(found)
    else:
        emit(netns_bench.describe(rows))
    if out is not None:
        # Last: minutes of measuring are not lost to a directory that is missing.
        write_json(out, found)


def _bytes_per_s(rate: str) -> float:
    from edgectl.links_config import parse_rate

    try:
        return parse_rate(rate) if rate else 0.0
    except ValueError as problem:
        raise typer.BadParameter(str(problem), param_hint="--rate") from problem
