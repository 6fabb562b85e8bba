"""What limits a plan and what would help most: the planner asked again, with one thing changed at a time."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.cost import CostModel
from planner.placement import Change, Goal, Placement, place_again
from planner.prediction import Prediction, StagePrediction
from planner.problem import Problem, Segment

MOST_QUESTIONS = 8
"""Each is one search: together they may take as long as a few plans."""
MOST_QUESTIONS_OF_OTHERS = 4
"""A search for throughput or energy takes ten times as long."""
WORTH_SAYING = 0.01
"""Relative: an improvement below it is noise in any measurement."""
MOST_SAID = 5


@dataclass(frozen=True, slots=True)
class _Question:
    """One thing changed; `what` reads "doubling link a→b"."""

    what: str
    change: Change
    weight_ms: float
    """What the changed thing takes per token now: the larger, the sooner it is asked about."""


def advise(model: CostModel, goal: Goal, placement: Placement, prediction: Prediction) -> tuple[str, ...]:
    """What limits, then what helps, the best first."""
    return (limit(model, goal, placement, prediction), *_helpful(model, goal, placement, prediction))


def limit(model: CostModel, goal: Goal, placement: Placement, prediction: Prediction) -> str:
    """The largest part of a token's time; for throughput what keeps the rate from rising."""
    if goal.objective == "throughput":
        return _limit_of_rate(model, placement)
    what, ms = max(_parts(model, prediction), key=lambda part: part[1])
    share = ms / prediction.ms_per_token
    return f"limited by {what}: {ms:.1f} of {prediction.ms_per_token:.1f} ms per token ({share:.0%})"


def _parts(model: CostModel, prediction: Prediction) -> list[tuple[str, float]]:
    """What a token's time is made of: compute by kind of device, every link alone."""
    stages = prediction.stages
    parts = []
    for members in model.classes:
        own = [stage for stage in stages if stage.device in members]
        if own:
            alike = f" and {len(own) - 1} like it" if members[0] != model.source and len(own) > 1 else ""
            parts.append((f"compute on {own[0].device}{alike}", sum(stage.compute_ms for stage in own)))
    following = (*stages[1:], stages[0])
    hops = [(f"link {a.device}→{b.device}", a.hop_ms) for a, b in zip(stages, following, strict=True)]
    return parts + hops


def _limit_of_rate(model: CostModel, placement: Placement) -> str:
    route = placement.routes[0]
    times = model.times(route, route.rows)
    busy: dict[str, float] = {}
    for place, stage in enumerate(route.stages):
        server = times.servers[place] if times.servers else stage.device
        shown = f"compute on {stage.device}" if server in (stage.device, "") else f"compute on host {server}"
        share = len(placement.routes) if stage.device == route.source else 1
        busy[shown] = busy.get(shown, 0.0) + share * times.compute_ms[place]
    for (a, b), ms in zip(pairwise(route.stages), times.transfer_ms, strict=True):
        busy[f"link {a.device}→{b.device}"] = ms
    what, ms = max(busy.items(), key=lambda item: item[1])
    turn_ms = times.round_ms / route.micro_batches
    if turn_ms > ms:
        return (
            f"limited by the ring: a token takes {times.round_ms:.1f} ms around, shared by "
            f"{route.micro_batches} micro-batches; more sessions would raise the rate"
        )
    return f"limited by {what}: {ms:.1f} ms per micro-batch of {route.rows}, all else waits for it"


def _helpful(model: CostModel, goal: Goal, placement: Placement, prediction: Prediction) -> list[str]:
    most = MOST_QUESTIONS if goal.objective == "latency" else MOST_QUESTIONS_OF_OTHERS
    if goal.objective == "energy" and not placement.optimal:
        most = 0  # One search took seconds already.
    questions = sorted(_questions(model, placement, prediction), key=lambda asked: -asked.weight_ms)[:most]
    found = []
    for asked in questions:
        better = place_again(model, goal, placement, asked.change)
        if better is not None and better.cost < placement.cost * (1 - WORTH_SAYING):
            found.append((better.cost, _worth(asked.what, goal, placement.cost, better.cost)))
    return [text for _, text in sorted(found)][:MOST_SAID]


def _worth(what: str, goal: Goal, before: float, after: float) -> str:
    share = f"{1 - after / before:.0%}"
    if goal.objective == "latency":
        return f"{what} saves {before - after:.1f} ms per token ({share})"
    if goal.objective == "energy":
        return f"{what} saves {before - after:.2f} J per token ({share})"
    return f"{what} gives {1e3 / after:.2f} tokens/s instead of {1e3 / before:.2f}"


# --- questions --------------------------------------------------------------------------------------------------------


def _questions(model: CostModel, placement: Placement, prediction: Prediction) -> Iterator[_Question]:
    segments, stages = placement.segments, prediction.stages
    yield from _about_links(model, segments, stages)
    problem = model.pipeline_problem(1, placement.sessions)
    for segment, stage in _once_per_class(segments, stages):
        k = segment.device_class
        who = _who(model, k)
        yield _Question(f"computing twice as fast on {who}", _faster(k), stage.compute_ms)
        if segment.stop - segment.start < problem.num_layers and _is_full(problem, segment, segments):
            # Layers move here from slower devices: worth about what all others compute.
            elsewhere_ms = sum(other.compute_ms for other in stages if other.device != stage.device)
            yield _Question(f"doubling the memory of {who}", _roomier(k), elsewhere_ms)


def _about_links(
    model: CostModel, segments: Sequence[Segment], stages: Sequence[StagePrediction]
) -> Iterator[_Question]:
    """Links in use, and the one that might be."""
    hops: dict[tuple[int, int], list[int]] = {}
    for place, (before, after) in enumerate(pairwise(segments)):
        hops.setdefault((before.device_class, after.device_class), []).append(place)
    for (a, b), places in hops.items():
        shown = f"link {stages[places[0]].device}→{stages[places[0] + 1].device}"
        if len(model.classes[a]) * len(model.classes[b]) > 1:
            shown += " and all like it"
        yield _Question(f"doubling {shown}", _quicker_link(a, b), sum(stages[place].hop_ms for place in places))
    yield from _about_the_direct_link(model, segments, stages, hops)


def _about_the_direct_link(
    model: CostModel,
    segments: Sequence[Segment],
    stages: Sequence[StagePrediction],
    used: Container[tuple[int, int]],
) -> Iterator[_Question]:
    """From the source straight to the device that computes most, or would if it could be reached."""
    own = segments[0].device_class
    if len(segments) > 1:
        target = max(zip(segments, stages, strict=True), key=lambda pair: pair[1].compute_ms)[0].device_class
    else:
        layer_ms = model.pipeline_problem(1, 1).unit_cost.min(axis=1)
        target = min(range(len(layer_ms)), key=lambda k: (k == own, float(layer_ms[k])))
    source, device = stages[0].device, model.classes[target][0]
    if target == own or (own, target) in used or math.isinf(model.transfer_ms(source, device)):
        return
    shown = f"link {source}→{device}" + (" and all like it" if len(model.classes[target]) > 1 else "")
    hops_ms = sum(stage.hop_ms for stage in stages) if len(segments) > 1 else stages[0].compute_ms
    yield _Question(f"doubling {shown}", _quicker_link(own, target), hops_ms)


def _once_per_class(
    segments: Sequence[Segment], stages: Sequence[StagePrediction]
) -> Iterator[tuple[Segment, StagePrediction]]:
    """Of each class the stage that computes longest."""
    for k in dict.fromkeys(segment.device_class for segment in segments):
        own = [(s, stage) for s, stage in zip(segments, stages, strict=True) if s.device_class == k]
        yield max(own, key=lambda pair: pair[1].compute_ms)


def _who(model: CostModel, k: int) -> str:
    """The class as a person calls it: what is changed is changed for all of it."""
    members = model.classes[k]
    return members[0] if len(members) == 1 else f"{members[0]} and the {len(members) - 1} like it"


def _is_full(problem: Problem, segment: Segment, segments: Sequence[Segment]) -> bool:
    """Whether its device has no room for one more inner layer."""
    k = segment.device_class
    own = [each for each in segments if each == segment or (k == problem.source and each.device_class == k)]
    held = sum(problem.segment_bytes(each) for each in own) - (len(own) - 1) * int(problem.stage_bytes[k])
    middle = problem.num_layers // 2
    return held + int(problem.unit_bytes[k, middle]) > int(problem.memory_bytes[k])


def _quicker_link(a: int, b: int) -> Change:
    def change(problem: Problem) -> Problem:
        per_byte = problem.hop_cost_per_byte.copy()
        per_byte[a, b] /= 2
        return replace(problem, hop_cost_per_byte=per_byte)

    return change


def _roomier(k: int) -> Change:
    def change(problem: Problem) -> Problem:
        return replace(problem, memory_bytes=problem.memory_bytes * np.where(_only(problem, k), 2, 1))

    return change


def _faster(k: int) -> Change:
    def change(problem: Problem) -> Problem:
        factor = np.where(_only(problem, k), 0.5, 1.0)
        return replace(problem, unit_cost=problem.unit_cost * factor[:, None], stage_cost=problem.stage_cost * factor)

    return change


def _only(problem: Problem, k: int) -> NDArray[np.bool_]:
    own: NDArray[np.bool_] = np.arange(problem.num_classes) == k
    return own
