"""`edgectl bench adaptive`: splits that move on a bad radio, one controller after another on two real agents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.commands.model_options import Boundary, Model, Quantize, WireCodec
from planner.channel import Concealment

if TYPE_CHECKING:
    from edgectl.adaptive_bench.setting import Wish


def bench_adaptive(
    model: Model,
    quality: Annotated[
        Path, typer.Option(help="Quality table of the model, as `edgectl rl collect` writes it.", dir_okay=False)
    ],
    *,
    policy: Annotated[
        Path | None, typer.Option(help="Policy of `edgectl rl train`.", dir_okay=False, show_default=False)
    ] = None,
    controllers: Annotated[
        str | None, typer.Option(help="Some of static, table, planner and policy. Default: all that can run.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A recorded channel, instead of one that is drawn.", show_default=False)
    ] = None,
    m: Annotated[float, typer.Option(min=0.5, help="Nakagami shape the channel begins with.")] = 1.5,
    step: Annotated[float, typer.Option(min=0, help="Standard deviation of a step of m.")] = 0.5,
    hold: Annotated[int, typer.Option(min=1, help="Tokens for which m stays.")] = 16,
    sigma: Annotated[float, typer.Option(min=0, help="Of the noise on every element.")] = 0.0,
    fading: Annotated[bool, typer.Option(help="Multiply by the gain: equation 3 whole.")] = True,
    mitigation: Annotated[
        Concealment | None, typer.Option(help="What stands in for what is lost. Default: the table's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the channel.")] = 0,
    tokens: Annotated[int, typer.Option(min=2, max=8000, help="That each session generates.")] = 480,
    text_tokens: Annotated[int, typer.Option(min=2, help="Of the text that schedules are scored on.")] = 4096,
    latency_ms: Annotated[float, typer.Option(min=0, help="Of the radio, one way.")] = 2.0,
    rate: Annotated[str, typer.Option(help='Of the radio, like "20 Mbit". Empty: no limit.')] = "",
    quantize: Quantize = "fp32",
    boundary: Boundary = "fp16",
    codec: WireCodec = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one line of JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write the JSON to.", show_default=False)] = None,
) -> None:
    """Hold controllers of the split against each other and against every split that stays.

    Each has a session on two agents of this machine over the same emulated radio. Its damage schedule is run again
    offline, which must give the same tokens, and scored on WikiText-2.
    """
    from edgectl.adaptive_bench.setting import PROMPT_TOKENS, Wish
    from edgectl.adaptive_bench.trace import Walk, recorded_channel, walking_channel
    from edgectl.planning import ServingOptions

    walk = Walk(
        tokens=PROMPT_TOKENS + tokens,
        start_m=m,
        step=step,
        hold_tokens=hold,
        sigma=sigma,
        faded=fading,
        seed=seed,
        concealment=mitigation or "zero",
    )
    wish = Wish(
        model=model,
        quality=quality,
        channel=walking_channel(walk) if trace is None else recorded_channel(trace),
        conceals_as_table=trace is None and mitigation is None,
        tokens=tokens,
        policy=policy,
        controllers=tuple(name.strip() for name in controllers.split(",")) if controllers else (),
        text_tokens=text_tokens,
        latency_ms=latency_ms,
        rate=rate,
        options=ServingOptions(quantization=quantize, boundary=boundary, codec=codec),
    )
    _compare(wish, as_json, out)


def _compare(wish: Wish, as_json: bool, out: Path | None) -> None:
    """Runs it, prints what it found and writes it."""
    import sys
    import tempfile
    from datetime import datetime, timezone

    from edgectl.adaptive_bench.report import describe_comparison, document
    from edgectl.adaptive_bench.setting import fulfil
    from edgectl.failures import ExitCode
    from edgectl.local_processes import ProcessFailed
    from edgectl.output import CommandFailure, emit, emit_json, say, write_json

    try:
        with tempfile.TemporaryDirectory(prefix="edgectl-bench-") as directory:
            found = fulfil(wish, Path(directory), say)
    except ProcessFailed as problem:
        raise CommandFailure(ExitCode.FAILURE, str(problem)) from problem
    written = document(found, sys.argv, datetime.now(timezone.utc))
    if as_json:
        emit_json(written)
    else:
        emit(describe_comparison(found))
    if out is not None:
        # Last: minutes of measuring are not lost to a directory that is missing.
        write_json(out, written)
