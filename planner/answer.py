"""From a request for a plan to an answer: the plan, what it is compared with, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.advice import advise
from planner.baselines import baseline_routes
from planner.bottleneck import Ring
from planner.cost import CostModel
from planner.errors import Infeasible
from planner.latency import cheapest_route
from planner.pareto import frontier
from planner.placement import PROVEN, Goal, Placement, at_least, place, tokens_per_s
from planner.prediction import Prediction, predict
from planner.profile import ClusterProfile
from planner.shortage import shortages
from planner.types import Allotment, Plan, Route, StageCost
from planner.workload import Objective, Privacy, Workload

SAME = 1e-6
"""Relative: what is no better by more than this is as good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What is asked. Raises ValueError naming the option."""

    profile: ClusterProfile
    workload: Workload
    objective: Objective = "latency"
    source: str | None = None
    """None: the first device, or with privacy none whichever is best."""
    privacy: Privacy = "source-first"
    batch: int | None = None
    """Sessions that have room; None: the workload's, of which a throughput plan takes as many as are best."""
    replicas: bool = False
    pareto: bool = False

    def __post_init__(self) -> None:
        self.goal  # noqa: B018, raises for what contradicts itself

    @property
    def goal(self) -> Goal:
        return Goal(self.objective, self.batch, self.replicas)


@dataclass(frozen=True, slots=True)
class Trade:
    """A placement that no other beats both alone and under load."""

    route: Route
    round_ms: float
    """A token of one micro-batch alone in the pipeline."""
    tokens_per_s: float
    """With all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A plan and all that was found out on the way to it."""

    request: PlanRequest
    model: CostModel
    """With the source that was chosen."""
    placement: Placement
    plan: Plan
    prediction: Prediction
    """Of the first route; tokens_per_s of all of them."""
    baselines: Mapping[str, Prediction | tuple[str, ...]]
    """Causes where a baseline does not fit."""
    advice: tuple[str, ...]
    sentences: tuple[str, ...]
    pareto: tuple[Trade, ...] = ()

    @property
    def value(self) -> float:
        """Of the objective, in `placement.UNITS`."""
        return self.placement.cost

    @property
    def lower_bound(self) -> float:
        return self.placement.lower_bound

    @property
    def gap(self) -> float:
        return self.placement.gap

    @property
    def optimal(self) -> bool:
        return self.placement.optimal

    @property
    def sessions(self) -> int:
        """Sequences that have room, over all routes."""
        return self.placement.sessions * len(self.plan.routes)

    @property
    def estimated(self) -> bool:
        """Whether a number behind the plan was estimated and not measured."""
        return bool(estimated_parts(self.model, self.plan.routes))


def make_plan(request: PlanRequest) -> Answer:
    """The best plan by the objective. Raises Infeasible with causes, UnknownName and BadProfile."""
    workload = request.workload
    if request.batch is not None:
        workload = replace(workload, sessions=request.batch)
    model, placement = _best_source(request, workload)
    sessions = placement.sessions
    alike = CostModel(
        request.profile, replace(workload, sessions=sessions), source=model.source, privacy=request.privacy
    )
    routes = baseline_routes(alike)
    placement = at_least(model, request.goal, placement, routes.values())
    prediction = _predicted(model, placement)
    plan = _plan(model, placement, prediction)
    baselines = {
        name: predict(alike, found, sessions) if isinstance(found, Route) else found.causes
        for name, found in routes.items()
    }
    return Answer(
        request=request,
        model=model,
        placement=placement,
        plan=plan,
        prediction=prediction,
        baselines=baselines,
        advice=advise(model, request.goal, placement, prediction),
        sentences=_sentences(request, model, placement, prediction),
        pareto=_trades(model, placement.routes[0], sessions) if request.pareto else (),
    )


def estimated_parts(model: CostModel, routes: tuple[Route, ...]) -> tuple[str, ...]:
    """Devices of the routes, and the links between them, whose numbers are estimates."""
    used = {stage.device for route in routes for stage in route.stages}
    hops = {
        (a.device, b.device)
        for route in routes
        for a, b in zip(route.stages, (*route.stages[1:], route.stages[0]), strict=True)
    }
    devices = [device.name for device in model.profile.devices if device.estimated and device.name in used]
    links = [
        f"{link.source}→{link.destination}"
        for link in model.profile.links
        if link.estimated and (link.source, link.destination) in hops
    ]
    return (*devices, *links)


def _best_source(request: PlanRequest, workload: Workload) -> tuple[CostModel, Placement]:
    """With privacy none and no source named, one device of each kind is tried as the source."""
    first = CostModel(request.profile, workload, source=request.source, privacy=request.privacy)
    models = [first]
    if request.privacy == "none" and request.source is None:
        models += [
            CostModel(request.profile, workload, source=members[0], privacy="none") for members in first.classes[1:]
        ]
    found = [(model, placement) for model in models if (placement := place(model, request.goal)) is not None]
    if found:
        # The first of equals: the profile's order is the owner's.
        model, best = min(found, key=lambda each: each[1].cost * (1 - PROVEN * (each[0] is first)))
        # A source whose search was cut short may have a better placement than the best that was found.
        bounds = [placement.lower_bound for _, placement in found]
        return model, replace(best, lower_bound=min(best.cost, *bounds))
    least = (
        workload if request.objective != "throughput" or request.batch is not None else replace(workload, sessions=1)
    )
    causes = shortages(CostModel(request.profile, least, source=request.source, privacy=request.privacy))
    room = f"{least.sessions} session{'s' if least.sessions > 1 else ''} of {least.context} tokens"
    raise Infeasible(f"{request.profile.model} in {least.quantization} does not fit with room for {room}", causes)


def _predicted(model: CostModel, placement: Placement) -> Prediction:
    """Of the first copy, with the source's memory and the rate of all copies."""
    route, copies = placement.routes[0], len(placement.routes)
    prediction = predict(model, route, placement.sessions)
    if copies == 1:
        return prediction
    stages = tuple(
        replace(stage, memory_bytes=model.memory_used_bytes(stage.device, route, copies * placement.sessions))
        if stage.device == route.source
        else stage
        for stage in prediction.stages
    )
    return replace(prediction, stages=stages, tokens_per_s=1e3 / placement.cost)


def _plan(model: CostModel, placement: Placement, prediction: Prediction) -> Plan:
    work = model.workload
    predicted = {
        "ms_per_token": prediction.ms_per_token,
        "time_to_first_token_ms": prediction.time_to_first_token_ms,
        "tokens_per_s": prediction.tokens_per_s,
    }
    if prediction.joules_per_token is not None:
        predicted["joules_per_token"] = prediction.joules_per_token
    return Plan(
        model=model.profile.model,
        quantization=work.quantization,
        block_size=work.block_size,
        boundary=work.boundary,
        codec=work.codec,
        context=work.context,
        routes=placement.routes,
        allotments=_allotments(model, placement),
        predicted=predicted,
        costs=tuple(StageCost(stage.compute_ms, stage.hop_ms, stage.wait_ms) for stage in prediction.stages),
    )


def _allotments(model: CostModel, placement: Placement) -> tuple[Allotment, ...]:
    """One per device; the source has its layers once and sequences of every copy."""
    found: dict[str, Allotment] = {}
    for route in placement.routes:
        for name in {stage.device: None for stage in route.stages}:
            slots = placement.sessions * (len(placement.routes) if name == route.source else 1)
            resident = tuple(stage.layers for stage in route.stages if stage.device == name)
            held = model.memory_used_bytes(name, route, slots)
            found.setdefault(name, Allotment(name, resident, slots, held, model.memory_available_bytes(name)))
    return tuple(found.values())


def _sentences(request: PlanRequest, model: CostModel, placement: Placement, prediction: Prediction) -> tuple[str, ...]:
    said = []
    route = placement.routes[0]
    if len(model.profile.devices) == 1:
        said.append(f"{route.source} is the only device: there is nothing to split over")
    elif len(route.stages) == 1:
        said.append(
            f"splitting does not pay: for {request.objective} {route.source} alone is as good as any split, "
            f"{_in_words(request.objective, prediction)}"
        )
    elif request.objective == "throughput":
        solution = cheapest_route(model.latency_problem())
        if solution is not None and len(solution.segments) == 1:
            alone = predict(model, model.route(solution.segments), model.workload.sessions)
            said.append(
                f"for one session at a time splitting does not pay: {route.source} alone takes "
                f"{alone.ms_per_token:.1f} ms per token, this plan {prediction.ms_per_token:.1f}"
            )
    if placement.bound_tokens_per_s is not None:
        said.append(
            f"best of equal copies; copies that differ cannot exceed {placement.bound_tokens_per_s:.2f} tokens/s"
        )
    return tuple(said)


def _in_words(objective: Objective, prediction: Prediction) -> str:
    """What the objective counts."""
    if objective == "throughput":
        return f"{prediction.tokens_per_s:.1f} tokens/s"
    if objective == "energy" and prediction.joules_per_token is not None:
        return f"{prediction.joules_per_token:.2f} J per token"
    return f"{prediction.ms_per_token:.1f} ms per token"


def _trades(model: CostModel, route: Route, sessions: int) -> tuple[Trade, ...]:
    """Costed again, for devices that share a machine; what is beaten in both then is left out."""
    ring = Ring(model.pipeline_problem(route.rows, sessions), route.micro_batches)
    trades: list[Trade] = []
    for point in frontier(ring, route.rows):
        other = model.route(point.segments, route.micro_batches, route.rows)
        rate = tokens_per_s(model, (other,))
        if not trades or rate > trades[-1].tokens_per_s * (1 + SAME):
            trades.append(Trade(other, point.round_ms, rate))
    return tuple(trades)
