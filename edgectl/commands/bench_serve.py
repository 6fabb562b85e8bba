"""`edgectl bench serve`: offer a load to a running server and report what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Url = Annotated[
    str | None, typer.Argument(help="The server, http://host:port. Default: this cluster's.", envvar="EDGE_URL")
]
Cluster = Annotated[Path | None, typer.Option(help="cluster.toml whose coordinator is asked.", show_default=False)]
Rate = Annotated[
    float | None, typer.Option(help="Open loop: sessions per second, whoever is still waiting.", show_default=False)
]
Concurrency = Annotated[
    int | None, typer.Option(min=1, help="Closed loop: sessions at a time. Default: 8.", show_default=False)
]
Sessions = Annotated[
    int | None, typer.Option(min=1, help="Sessions in all. Default: 100, without --seconds.", show_default=False)
]
Seconds = Annotated[float | None, typer.Option(min=0.1, help="Offer sessions for so long.", show_default=False)]
WarmUp = Annotated[
    int | None,
    typer.Option(min=0, help="First sessions that do not count. Default: a tenth, at most 20.", show_default=False),
]
Tokens = Annotated[str, typer.Option(help="N, uniform:FROM:TO or lognormal:MEDIAN:SIGMA.", metavar="LENGTHS")]
Key = Annotated[
    list[str] | None,
    typer.Option("--api-key", help="Several take turns. Default: EDGE_API_KEY.", show_default=False),
]
Slo = Annotated[float | None, typer.Option(min=0.0, help="Objective of the goodput.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Write the report here, as JSON.", show_default=False)]
Plot = Annotated[Path | None, typer.Option(help="Draw it: .svg or .png.", show_default=False)]


def bench_serve(
    url: Url = None,
    *,
    cluster: Cluster = None,
    rate: Rate = None,
    arrivals: Annotated[str, typer.Option(help="Of an open loop: poisson or constant.")] = "poisson",
    concurrency: Concurrency = None,
    sessions: Sessions = None,
    seconds: Seconds = None,
    warm_up: WarmUp = None,
    prompt_tokens: Tokens = "64",
    output_tokens: Tokens = "64",
    vocabulary: Annotated[int, typer.Option(help="Prompts are random ids below this.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed offers the same sessions.")] = 0,
    cancel_share: Annotated[float, typer.Option(min=0, max=1, help="Share of clients that hang up half-way.")] = 0.0,
    retries: Annotated[int, typer.Option(min=0, help="Come back so often when Retry-After says.")] = 0,
    slo_ttft_ms: Slo = None,
    slo_tpot_ms: Slo = None,
    api_key: Key = None,
    model: Annotated[str | None, typer.Option(help="Name of the model. Default: the server's first.")] = None,
    out: Out = None,
    plot: Plot = None,
    detailed: Annotated[bool, typer.Option("--detailed", help="One object per session in the report.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one line of JSON.")] = False,
) -> None:
    """Offer sessions to a running server, open loop or closed, and say what its clients saw and where the time went."""
    from edgectl.client import coordinator_url
    from edgectl.load.run import Wish, run_load

    _check(rate, concurrency, arrivals, plot)
    wish = Wish(
        url=coordinator_url(url, cluster),
        rate_per_s=rate,
        arrivals="constant" if arrivals == "constant" else "poisson",
        concurrency=concurrency,
        sessions=sessions,
        seconds=seconds,
        warm_up=warm_up,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        vocabulary=vocabulary,
        seed=seed,
        cancel_share=cancel_share,
        retries=retries,
        slo_ttft_ms=slo_ttft_ms,
        slo_tpot_ms=slo_tpot_ms,
        api_keys=tuple(api_key or ()),
        model=model,
        detailed=detailed,
    )
    try:
        report, counted = run_load(wish)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    _write(report, out, as_json=as_json)
    if plot is not None:
        from edgectl.load.plot import plot_load

        plot_load(report, counted, plot)


def _check(rate: float | None, concurrency: int | None, arrivals: str, plot: Path | None) -> None:
    """What can be said without asking anybody. Raises typer.BadParameter."""
    if rate is not None and concurrency is not None:
        raise typer.BadParameter("an open loop (--rate) has no --concurrency")
    if arrivals not in ("poisson", "constant"):
        raise typer.BadParameter(f"{arrivals}: expected poisson or constant", param_hint="--arrivals")
    if plot is not None:
        from edgectl.plan_plot import check_suffix

        try:
            check_suffix(plot)
        except ValueError as problem:
            raise typer.BadParameter(str(problem)) from problem


def _write(report: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Shows it before it is written: ten minutes of load are not lost to a directory that is missing."""
    from edgectl.load.text import describe
    from edgectl.output import emit_json, show, write_json

    if as_json:
        emit_json(report)
    else:
        show(describe(report))
    if out is not None:
        write_json(out, report)
