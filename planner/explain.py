"""`edgectl plan --explain`: why each device got its layers, what binds, who was left out, and what the bound means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.answer import Answer, estimated_parts
from planner.cost import CostModel
from planner.placement import Placement
from planner.prediction import StagePrediction
from planner.problem import Problem, Segment
from planner.types import LayerRange

MIB = 1 << 20
MOST_STAGES = 16
"""Longer routes are of equal devices, and would say the same again and again."""


def explain_plan(answer: Answer) -> tuple[str, ...]:
    """One sentence per line."""
    problem = _problem(answer)
    return (
        _what_is_best(answer),
        *_stages(answer, problem),
        *_left_out(answer),
        _memory(answer),
        _bound(answer),
        *_estimates(answer),
    )


def _problem(answer: Answer) -> Problem:
    """The additive problem in which a boundary is moved: of a request, or of a step under load."""
    if answer.request.objective == "throughput":
        return answer.model.pipeline_problem(answer.plan.routes[0].rows, answer.placement.sessions)
    return answer.model.latency_problem()


def _what_is_best(answer: Answer) -> str:
    work, request, route = answer.model.workload, answer.request, answer.plan.routes[0]
    if request.objective == "throughput":
        return (
            "objective: most tokens per second without bubbles, rows / max(busiest device or link, round / "
            f"micro-batches), over all placements and batches; {route.micro_batches} × {route.rows} rows won"
        )
    if request.objective == "energy":
        return (
            "objective: least energy per token of a whole request: devices that are used draw idle power all the time "
            "and their active power while they compute"
        )
    return (
        f"objective: (time to first token + {work.tokens - 1} × ms per token) / {work.tokens}, "
        f"for a prompt of {work.prompt} in {len(answer.model.chunks)} chunk"
        f"{'s' if len(answer.model.chunks) > 1 else ''} and {work.tokens} tokens"
    )


def _stages(answer: Answer, problem: Problem) -> Iterator[str]:
    segments, stages = answer.placement.segments, answer.prediction.stages
    for place, stage in enumerate(stages[:MOST_STAGES]):
        reasons = [_why_here(answer, place)]
        if _is_full(answer.model, answer.placement, stage):
            lacking = _one_more_bytes(answer.model, answer.placement, stage) - stage.memory_available_bytes
            reasons.append(f"its memory is full: one more layer lacks {-(-lacking // MIB)} MiB")
        if place + 1 < len(stages):
            reasons.append(_move(problem, segments, place, stages))
        yield f"{stage.device} {stage.layers}: " + "; ".join(reasons)
    if len(stages) > MOST_STAGES:
        yield f"and {len(stages) - MOST_STAGES} stages more"


def _why_here(answer: Answer, place: int) -> str:
    model, stage = answer.model, answer.prediction.stages[place]
    layer_ms = _layer_ms(model, stage.device)
    quickest = min(_layer_ms(model, device.name) for device in model.profile.devices)
    rank = "the fastest" if layer_ms <= quickest else f"{layer_ms / quickest:.1f} times the fastest's time"
    speed = f"{layer_ms:.2f} ms per layer, {rank}"
    if place == 0:
        who = "the source, with the prompt and the embedding"
        return f"{who}; {speed}"
    if stage.device == model.source:
        return f"the source again: the head and the tokens stay there; {speed}"
    return speed


def _move(problem: Problem, segments: Sequence[Segment], place: int, stages: Sequence[StagePrediction]) -> str:
    """What it costs to move the boundary behind a stage by one layer."""
    said = []
    for step, receiver in ((1, stages[place].device), (-1, stages[place + 1].device)):
        a, b = segments[place], segments[place + 1]
        moved = [*segments]
        moved[place] = replace(a, stop=a.stop + step)
        moved[place + 1] = replace(b, start=b.start + step)
        if a.stop + step <= a.start or b.start + step >= b.stop:
            continue
        difference = problem.cost_of(moved) - problem.cost_of(segments)
        cost = f"{difference:+.2f} ms" if difference < float("inf") else "does not fit"
        said.append(f"a layer more on {receiver}: {cost}")
    return "boundary behind it: " + ", ".join(said) if said else "no boundary to move"


def _left_out(answer: Answer) -> Iterator[str]:
    model = answer.model
    used = {stage.device for route in answer.plan.routes for stage in route.stages}
    for members in model.classes:
        unused = [name for name in members if name not in used]
        if not unused:
            continue
        who = unused[0] if len(unused) == 1 else f"{unused[0]} and {len(unused) - 1} like it"
        if len(unused) < len(members):
            yield f"not used: {who}: no further stage of this kind pays for its hop"
            continue
        hop_ms = model.latency_ms(model.source, unused[0]) + model.transfer_ms(model.source, unused[0])
        link = f"{hop_ms:.2f} ms from {model.source}" if hop_ms < float("inf") else f"no link from {model.source}"
        yield f"not used: {who}: {_layer_ms(model, unused[0]):.2f} ms per layer, {link}"


def _memory(answer: Answer) -> str:
    work, sessions = answer.model.workload, answer.placement.sessions
    counted = [
        "weights",
        f"KV cache for {sessions} session{'s' if sessions > 1 else ''} of {work.context} tokens",
        "head",
    ]
    counted += ["workspace"] if work.counts_workspace else []
    counted += ["embedding"] if work.counts_embedding else []
    return "memory counts " + ", ".join(counted)


def _bound(answer: Answer) -> str:
    if answer.request.objective == "throughput" and answer.placement.bound_tokens_per_s is not None:
        scope = "no arrangement of equal copies"
    else:
        scope = "no placement of whole layers on these devices, each used for one stretch,"
    if answer.optimal:
        return f"bound: the search is exact; {scope} is better under these numbers"
    return (
        f"bound: {scope} can be better than this one by more than {answer.gap:.2%}; "
        "the search stopped, or devices share a machine, which the bound leaves out"
    )


def _estimates(answer: Answer) -> tuple[str, ...]:
    parts = estimated_parts(answer.model, answer.plan.routes)
    if not parts:
        return ("estimates: none, devices and links were measured",)
    return (f"estimates, not measurements: {', '.join(parts)}",)


def _layer_ms(model: CostModel, device: str) -> float:
    """One inner layer, or the only one."""
    middle = LayerRange(1, 2) if model.spec.num_layers > 2 else LayerRange(0, 1)
    return model.decode_ms(device, middle) - model.device(device).stage_ms


def _is_full(model: CostModel, placement: Placement, stage: StagePrediction) -> bool:
    return (
        len(stage.layers) < model.spec.num_layers
        and _one_more_bytes(model, placement, stage) > stage.memory_available_bytes
    )


def _one_more_bytes(model: CostModel, placement: Placement, stage: StagePrediction) -> int:
    return stage.memory_bytes + model.memory_parts(placement.sessions).layer
