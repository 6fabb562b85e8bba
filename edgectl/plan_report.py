"""A plan as text for a terminal: stages, what is predicted, what it is compared with, what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgectl.output import mib, table
from planner.answer import Answer, estimated_parts
from planner.placement import PROVEN, UNITS
from planner.prediction import Prediction
from planner.types import Route, Stage

if TYPE_CHECKING:
    from edgectl.plan_measure import Measured

ESTIMATE = "~"
"""Before every number that rests on an estimate."""
MOST_ROUTES = 4
"""Copies that are listed; the others are like them."""
MOST_NAMES = 6
PUBLISHED = "algorithm-"
"""EdgeShard's algorithms as printed are in --json and in `edgectl reproduce`: of use to nobody who wants a plan."""


def describe_plan(answer: Answer, title: str = "") -> str:
    """The whole answer; --explain, --verify and --measure add to it."""
    guess = " (estimate)" if answer.estimated else ""
    parts = (
        _headline(answer, title),
        _stages(answer),
        _copies(answer),
        _predicted(answer),
        _baselines(answer),
        _trades(answer),
        "\n".join(sentence + guess for sentence in (*answer.sentences, *answer.advice)),
        _bound(answer) + guess,
        _estimates(answer),
    )
    return "\n\n".join(part for part in parts if part)


def _headline(answer: Answer, title: str) -> str:
    plan, work = answer.plan, answer.request.workload
    on = f" on {title}" if title else ""
    room = f"room for {answer.sessions} session{'s' if answer.sessions > 1 else ''} of {plan.context} tokens"
    return (
        f"{plan.model} in {plan.quantization}{on}, for {answer.request.objective}\n"
        f"prompt {work.prompt}, {work.tokens} tokens, {room}, "
        f"boundary {plan.boundary}, codec {plan.codec}, source {plan.routes[0].source}"
    )


def _stages(answer: Answer) -> str:
    devices = {device.name: device for device in answer.model.profile.devices}
    links = {(link.source, link.destination): link.estimated for link in answer.model.profile.links}
    stages = answer.prediction.stages
    header = ("device", "layers", "memory", "of available", "compute ms", "hop ms", "wait ms")
    rows = []
    for stage, following in zip(stages, (*stages[1:], stages[0]), strict=True):
        estimated = devices[stage.device].estimated
        rows.append(
            (
                stage.device,
                str(stage.layers),
                mib(stage.memory_bytes),
                f"{_mark(estimated)}{mib(stage.memory_available_bytes)}",
                _number(stage.compute_ms, estimated),
                _number(stage.hop_ms, links.get((stage.device, following.device), False)),
                _number(stage.wait_ms, answer.estimated and stage.wait_ms > 0),
            )
        )
    return table(header, _to_the_right(header, rows, 2))


def _copies(answer: Answer) -> str:
    routes = answer.plan.routes
    if len(routes) == 1:
        return ""
    lines = [f"{len(routes)} copies share {routes[0].source}:"]
    lines += ["  " + _path(route) for route in routes[:MOST_ROUTES]]
    if len(routes) > MOST_ROUTES:
        lines.append(f"  and {len(routes) - MOST_ROUTES} more like them")
    return "\n".join(lines)


def _predicted(answer: Answer) -> str:
    found, route, guess = answer.prediction, answer.plan.routes[0], answer.estimated
    copies = f"{len(answer.plan.routes)} copies of " if len(answer.plan.routes) > 1 else ""
    text = (
        f"predicted: {_number(found.ms_per_token, guess)} ms per token, "
        f"{_number(found.time_to_first_token_ms, guess, 1)} ms to the first token, "
        f"{_number(found.tokens_per_s, guess)} tokens/s with {copies}{_batch(route)}"
    )
    if found.joules_per_token is not None:
        text += f", {_number(found.joules_per_token, guess)} J per token"
    return text


def _baselines(answer: Answer) -> str:
    """ms per token and tokens/s of this plan and of every baseline, or what does not fit."""
    header = ("compared with", "ms per token", "tokens/s", "")
    own = answer.prediction
    rows = [("this plan", _number(own.ms_per_token, answer.estimated), _number(own.tokens_per_s, answer.estimated), "")]
    for name, found in answer.baselines.items():
        if name.startswith(PUBLISHED):
            continue
        if isinstance(found, Prediction):
            route = Route(tuple(Stage(stage.device, stage.layers) for stage in found.stages))
            guess = bool(estimated_parts(answer.model, (route,)))
            rows.append((name, _number(found.ms_per_token, guess), _number(found.tokens_per_s, guess), _path(route)))
        else:
            rows.append((name, "-", "-", found[0] if found else "does not fit"))
    return table(header, _to_the_right(header, rows, 1, 3))


def _trades(answer: Answer) -> str:
    if not answer.pareto:
        return ""
    header = ("ms per round", "tokens/s", "stages")
    rows = [
        (
            _number(trade.round_ms, answer.estimated),
            _number(trade.tokens_per_s, answer.estimated),
            _path(trade.route),
        )
        for trade in answer.pareto
    ]
    route = answer.plan.routes[0]
    return f"no other placement is better in both, with {_batch(route)}:\n" + table(
        header, _to_the_right(header, rows, 0, 2)
    )


def _bound(answer: Answer) -> str:
    unit = UNITS[answer.request.objective]
    value, bound = f"{answer.value:.2f} {unit}", f"{answer.lower_bound:.2f} {unit}"
    if answer.request.objective == "throughput":
        value, bound = f"{1e3 / answer.value:.2f} tokens/s", f"{1e3 / answer.lower_bound:.2f} tokens/s"
    if answer.gap <= PROVEN:
        return f"objective {value}, proven optimal: the bound is {bound}, gap 0"
    return f"objective {value}, bound {bound}, gap {answer.gap:.2%}"


def _estimates(answer: Answer) -> str:
    parts = estimated_parts(answer.model, answer.plan.routes)
    if not parts:
        return ""
    rest = f" and {len(parts) - MOST_NAMES} more" if len(parts) > MOST_NAMES else ""
    return f"{ESTIMATE} rests on an estimate, not a measurement: {', '.join(parts[:MOST_NAMES])}{rest}"


def describe_measured(answer: Answer, measured: Measured) -> str:
    """Predicted and measured beside each other."""
    found = answer.prediction
    alone = 1e3 / found.ms_per_token
    lines = (
        ("ms per token", found.ms_per_token, measured.ms_per_token),
        ("ms to the first token", found.time_to_first_token_ms, measured.time_to_first_token_ms),
        ("tokens/s, one session", alone, measured.tokens_per_s),
    )
    rows = [(what, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours - 1:+.1%}") for what, ours, theirs in lines]
    for stage, seen in zip(found.stages, measured.stages, strict=True):
        for what, ours, value in (
            ("compute", stage.compute_ms, seen.compute_ms),
            ("hop", stage.hop_ms, seen.hop_ms),
        ):
            off = f"{value / ours - 1:+.1%}" if value is not None and ours > 0 else ""
            rows.append((f"{stage.device} {what} ms", f"{ours:.2f}", "-" if value is None else f"{value:.2f}", off))
    return table(("", "predicted", "measured", "off by"), rows)


def measured_as_json(measured: Measured) -> dict[str, object]:
    """What --json adds with --measure, under the names of `predicted`."""
    return {
        "ms_per_token": measured.ms_per_token,
        "time_to_first_token_ms": measured.time_to_first_token_ms,
        "tokens_per_s": measured.tokens_per_s,
        "stages": [
            {"device": stage.device, "compute_ms": stage.compute_ms, "hop_ms": stage.hop_ms, "wait_ms": stage.wait_ms}
            for stage in measured.stages
        ],
    }


def _batch(route: Route) -> str:
    if route.micro_batches * route.rows == 1:
        return "1 session"
    if route.micro_batches == 1:
        return f"{route.rows} sessions in 1 micro-batch"
    return f"{route.micro_batches} micro-batches of {route.rows}"


def _path(route: Route) -> str:
    """`agx-0 1, agx-1 5, cloud-0 26`: devices with their numbers of layers; equal neighbours are counted."""
    groups: list[tuple[list[str], int]] = []
    for stage in route.stages:
        if groups and groups[-1][1] == len(stage.layers) and len(route.stages) > MOST_NAMES:
            groups[-1][0].append(stage.device)
        else:
            groups.append(([stage.device], len(stage.layers)))
    return ", ".join(
        f"{names[0]} {layers}" if len(names) == 1 else f"{names[0]}…{names[-1]} {len(names)}×{layers}"
        for names, layers in groups
    )


def _number(value: float, estimated: bool, digits: int = 2) -> str:
    return f"{_mark(estimated)}{value:,.{digits}f}"


def _mark(estimated: bool) -> str:
    return ESTIMATE if estimated else ""


def _to_the_right(
    header: Sequence[str], rows: Sequence[Sequence[str]], first: int, last: int | None = None
) -> list[tuple[str, ...]]:
    """Columns `first` to `last` padded: a mark before a number hides from `table` that it is one."""
    end = len(header) if last is None else last
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        tuple(cell.rjust(widths[column]) if first <= column < end else cell for column, cell in enumerate(row))
        for row in rows
    ]
