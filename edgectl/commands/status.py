"""`edgectl status`: devices, stages and rates of a running coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgectl.output import emit_json, mib, show, table


def status(
    url: Annotated[str | None, typer.Option(help="The coordinator's HTTP address.", envvar="EDGE_URL")] = None,
    cluster: Annotated[Path | None, typer.Option(help="cluster.toml whose coordinator is asked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole status as one line of JSON.")] = False,
) -> None:
    """Show devices, their layers and memory, and where a token spends its time."""
    from edgectl.client import Client, coordinator_url

    with Client(coordinator_url(url, cluster)) as client:
        answer = client.status()
    if as_json:
        emit_json(answer)
    else:
        show(describe(answer))


def describe(answer: dict[str, Any]) -> str:
    """The status as text for a terminal."""
    plan = answer["plan"]
    parts = [f"{answer['model']}: {answer['detail']}"]
    if plan is not None:
        boundary = f"boundary {plan['boundary']}, codec {plan['codec']}, context {plan['context']}"
        parts[0] += f"\n{plan['layers']} layers, {plan['quantization']}, {boundary}"
    parts.append(table(("device", "state", "layers", "memory", "available", "provider"), _devices(answer)))
    problems = [f"{device['name']}: {device['problem']}" for device in answer["devices"] if device["problem"]]
    if problems:
        parts.append("\n".join(problems))
    if answer["stages"]:
        header = ("stage", "layers", "compute ms", "wire ms", "wait ms", "bytes/frame")
        parts.append(table(header, stage_rows(answer["stages"])))
    if answer.get("routes"):
        parts.append(table(("route", "micro-batches", "rows in use", "ms/token"), route_rows(answer["routes"])))
    if answer.get("adaptive") is not None:
        parts.append(describe_splits(answer["adaptive"]))
    if answer.get("predicted") is not None:
        parts.append(describe_prediction(answer))
    sessions = answer["sessions"]
    rate = "-" if answer["tokens_per_s"] is None else f"{answer['tokens_per_s']:.1f}"
    refused = sum(answer["frames_refused"].values())
    parts.append(
        f"{rate} tokens/s, {sessions['running']} sessions running, {sessions['queued']} queued{_wait(sessions)}, "
        f"{sessions['ended']} ended, {sessions['failed']} failed, {refused} frames refused"
    )
    return "\n\n".join(parts)


def stage_rows(stages: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row per stage: where a token spends its time."""
    return [
        (
            stage["device"],
            "[{}, {})".format(*stage["layers"]),
            *(_number(stage[key], 2) for key in ("compute_ms", "wire_ms", "wait_ms")),
            _number(stage["bytes_per_frame"], 0),
        )
        for stage in stages
    ]


def route_rows(routes: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row per route: what serves on it, and how quickly."""
    rows: list[tuple[str, ...]] = []
    for route in routes:
        states = [batch["state"] for batch in route["micro_batches"]]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        in_use = f"{route['rows_in_use']} of {route['rows']}"
        rows.append((" ".join(route["devices"]), counts, in_use, _number(route["ms_per_token"], 2)))
    return rows


def describe_splits(adaptive: dict[str, Any]) -> str:
    """Where splits are that move, what is proposed, why it is not done, and what is known of the links."""
    shadow = ", shadow" if adaptive["shadow"] else ""
    moves = adaptive["moves"]
    counts = ", ".join(f"{moves[outcome]} {outcome}" for outcome in moves if moves[outcome]) or "none"
    took = "" if adaptive["decision_ms"] is None else f", {adaptive['decision_ms']:.2f} ms each"
    head = (
        f"splits by {adaptive['controller']} ({adaptive['policy']}){shadow}: {adaptive['decisions']} decisions{took}; "
        f"moves: {counts}"
    )
    header = ("micro-batch", "split", "proposal", "guard", "reason")
    rows = [
        (
            str(batch["number"]),
            str(batch["split"]) + ("" if batch["moving_to"] is None else f" -> {batch['moving_to']}"),
            "-" if batch["proposal"] is None else str(batch["proposal"]),
            batch["guard"] or "-",
            batch["reason"],
        )
        for batch in adaptive["micro_batches"]
    ]
    if not rows:
        return f"{head}\nno route of two devices: nothing to split"
    header_of_links = ("link", "channel", "loss", "sigma", "m", "rtt ms", "goodput/s")
    links = {(batch["link"]["from"], batch["link"]["to"]): batch["link"] for batch in adaptive["micro_batches"]}
    return "\n".join((head, table(header, rows), table(header_of_links, [_link(link) for link in links.values()])))


def _link(link: dict[str, Any]) -> tuple[str, ...]:
    rate = link["goodput_bytes_per_s"]
    at_least = "at least " if link["goodput_is_lower_bound"] else ""
    return (
        f"{link['from']} -> {link['to']}",
        "emulated" if link["emulated"] else "measured",
        _number(link["loss"], 3),
        _number(link["sigma"], 2),
        _number(link["m"], 2),
        _number(link["rtt_ms"], 2),
        "-" if rate is None else f"{at_least}{rate / 1e6:,.2f} MB",
    )


def _wait(sessions: dict[str, Any]) -> str:
    """How long a newcomer waits, where somebody does."""
    wait_s = sessions.get("expected_wait_s")
    return f" (a newcomer waits {wait_s:.0f} s)" if wait_s else ""


def describe_prediction(answer: dict[str, Any]) -> str:
    """What the plan expected beside what is measured: every stage, and a token as a whole."""
    header = ("stage", "predicted compute ms", "measured", "predicted hop ms", "measured")
    rows = [
        (
            stage["device"],
            *(_number(stage[key], 2) for key in ("predicted_compute_ms", "compute_ms", "predicted_hop_ms", "wire_ms")),
        )
        for stage in answer["stages"]
    ]
    predicted = answer["predicted"]
    whole = f"ms per token: {_number(predicted.get('ms_per_token'), 2)} predicted"
    whole += f", {_number(answer['ms_per_token'], 2)} measured"
    ratio = predicted["measured_over_predicted"]
    return f"{table(header, rows)}\n{whole}" + (f" ({100 * (ratio - 1):+.1f} %)" if ratio is not None else "")


def _devices(answer: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            device["name"],
            device["state"],
            " ".join("[{}, {})".format(*layers) for layers in device["layers"]) or "-",
            mib(device["memory_bytes"]) if device["memory_bytes"] else "-",
            mib(device["memory_available_bytes"]) if device["memory_available_bytes"] is not None else "-",
            device["provider"] or "-",
        )
        for device in answer["devices"]
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
