"""What is to be served, and the plan for it: joins the options of `serve` or a plan file, the model and the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import ConfigError
from edgectl.deploy import Order
from edgectl.routes import MAX_MICRO_BATCHES, slots_of
from planner.errors import BadPlan, Infeasible
from planner.memory import MemoryBreakdown, memory_breakdown
from planner.memory_proportional import MAX_ROWS, memory_proportional
from planner.model_spec import ModelSpec
from planner.types import Allotment, BoundaryType, Codec, Device, LayerRange, Pipeline, Plan, Quantization, Route

DEFAULT_CONTEXT_TOKENS = 4096
"""Context without --context, if the model has that many positions: a chat, with a KV cache for small devices."""

DEFAULT_BLOCK_SIZE = 128
"""Weights that share a scale in int8 and int4. Decoding reads all of them for every token: block 128 has 4.6 bits per
weight, block 32 has 6.25 and a perplexity 0.7 % better (docs/log.md, 2026-11-21)."""


DEFAULT_SESSIONS = 4
"""Rows without --sessions: a household; a row of 4,096 tokens takes 176 MB of a 1.1B model's cache, 2 GB of a 7B's."""

MAX_SESSIONS = 256
"""More rows than sixteen devices' micro-batches of sixteen are a number that somebody mistyped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How a model is to be run, whatever the devices are."""

    quantization: Quantization = "fp32"
    block_size: int = DEFAULT_BLOCK_SIZE
    boundary: BoundaryType = "fp16"
    codec: Codec | None = None
    """None: the boundary type, which no hop rounds again."""
    context: int | None = None
    """Tokens of prompt and answer together. None: DEFAULT_CONTEXT_TOKENS or what the model has, if that is less."""
    sessions: int | None = None
    """Rows in all. None: DEFAULT_SESSIONS, or what there is memory for, if that is less."""
    pipeline: Pipeline = "no-bubbles"
    source: str | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the devices know it."""

    name: str
    digest: str
    spec: ModelSpec


def context_of(spec: ModelSpec, options: ServingOptions) -> int:
    """Context that is served. Raises ValueError when more is asked for than the model has positions."""
    if options.context is None:
        return min(DEFAULT_CONTEXT_TOKENS, spec.max_positions)
    if not 3 <= options.context <= spec.max_positions:
        raise ValueError(f"--context {options.context} is outside 3 to {spec.max_positions}, the model's positions")
    return options.context


def order_for(
    model: ServedModel, options: ServingOptions, devices: Sequence[str], min_devices: int | None = None
) -> Order:
    """What `Deployment` is to bring onto the devices. Raises ValueError for options that contradict each other."""
    context = context_of(model.spec, options)
    if options.source is not None and options.source not in devices:
        raise ValueError(f"--source {options.source} is not among the devices {', '.join(devices)}")
    if min_devices is not None and not 1 <= min_devices <= len(devices):
        raise ValueError(f"--min-devices {min_devices} is outside 1 to {len(devices)}")

    if options.sessions is not None and not 1 <= options.sessions <= MAX_SESSIONS:
        raise ValueError(f"--sessions {options.sessions} is outside 1 to {MAX_SESSIONS}")

    def plan_with(present: Sequence[Device], sessions: int) -> Plan:
        return memory_proportional(
            model.name,
            model.spec,
            present,
            quantization=options.quantization,
            block_size=options.block_size,
            boundary=options.boundary,
            codec=options.codec or options.boundary,
            context=context,
            sessions=sessions,
            source=options.source,
        )

    def plan_for(present: Sequence[Device]) -> Plan:
        if options.sessions is not None:
            return plan_with(present, options.sessions)
        for sessions in range(DEFAULT_SESSIONS, 1, -1):
            try:
                return plan_with(present, sessions)
            except Infeasible:
                continue  # Fewer sessions are better than none.
        return plan_with(present, 1)

    return Order(
        model=model.name,
        digest=model.digest,
        plan_for=plan_for,
        devices=tuple(devices),
        min_devices=len(devices) if min_devices is None else min_devices,
        source=options.source,
        pipeline=options.pipeline,
    )


def load_plan(path: Path) -> Plan:
    """The plan of a file that `edgectl plan --out` wrote. Raises ConfigError, and BadPlan naming file and field."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ConfigError(f"{path}: the plan cannot be read: {reason}; `edgectl plan --out` writes one") from problem
    # Here, so that a served model without a plan loads none of this.
    from planner.plan_json import parse_plan

    try:
        return parse_plan(text)
    except BadPlan as problem:
        raise BadPlan(str(path), str(problem).removeprefix("plan: ")) from problem


def order_of_plan(model: ServedModel, plan: Plan, devices: Sequence[str], pipeline: Pipeline = "no-bubbles") -> Order:
    """Brings a plan onto the devices of cluster.toml as it is; all of its devices are waited for.

    Raises BadPlan for a plan of another model, with unknown devices, or of a kind that is not executed yet. That a
    device has less memory than the plan needs shows when it has said Hello: `plan_for` raises Infeasible then.
    """
    _check_executable(model, plan, devices)
    used = {stage.device for route in plan.routes for stage in route.stages}

    def plan_for(present: Sequence[Device]) -> Plan:
        memory = {device.name: device.memory_bytes for device in present}
        allotments = tuple(
            _allotment(model.spec, plan, each, memory[each.device]) for each in plan.allotments if each.device in used
        )
        causes = [
            f"{each.device}: {-(-(each.memory_bytes - each.memory_available_bytes) >> 20)} MiB short for layers "
            + ", ".join(f"{layers}, {_need(model.spec, plan, layers, each.slots)}" for layers in each.resident)
            for each in allotments
            if each.memory_bytes > each.memory_available_bytes
        ]
        if causes:
            raise Infeasible(f"{plan.model} no longer fits as planned; profile and plan again", causes)
        return replace(plan, allotments=allotments)

    sources = {route.source for route in plan.routes}
    return Order(
        model=model.name,
        digest=model.digest,
        plan_for=plan_for,
        devices=tuple(name for name in devices if name in used),
        min_devices=len(used),
        source=sources.pop() if len(sources) == 1 else None,
        pipeline=pipeline,
    )


def not_executed_yet(plan: Plan) -> BadPlan | None:
    """Why `serve --plan` refuses every plan of this kind; None where it does not."""
    for number, route in enumerate(plan.routes):
        names = [stage.device for stage in route.stages]
        for place, name in enumerate(names):
            if name in names[:place]:
                return BadPlan(
                    f"routes[{number}].stages[{place}].device",
                    f"{name} has a stage already: agents run one stage of a route each, so that a route cannot end "
                    "where it began; plan with --privacy source-first",
                )
    return None


def _check_executable(model: ServedModel, plan: Plan, devices: Sequence[str]) -> None:
    if plan.model != model.name:
        raise BadPlan("model", f"is {plan.model}, but {model.name} is to be served; plan for that model")
    refusal = not_executed_yet(plan)
    if refusal is not None:
        raise refusal
    if not 3 <= plan.context <= model.spec.max_positions:
        raise BadPlan("context", f"is {plan.context}, {model.name} has 3 to {model.spec.max_positions} positions")
    micro_batches = sum(route.micro_batches for route in plan.routes)
    if micro_batches > MAX_MICRO_BATCHES:
        raise BadPlan("routes", f"have {micro_batches} micro-batches together, at most {MAX_MICRO_BATCHES} are served")
    for number, route in enumerate(plan.routes):
        _check_route(model, plan, route, f"routes[{number}]", devices)


def _check_route(model: ServedModel, plan: Plan, route: Route, where: str, devices: Sequence[str]) -> None:
    for place, stage in enumerate(route.stages):
        if stage.device not in devices:
            known = ", ".join(devices) or "none"
            raise BadPlan(
                f"{where}.stages[{place}].device", f"{stage.device} is not in cluster.toml, which has {known}"
            )
    if route.layers.stop != model.spec.num_layers:
        raise BadPlan(f"{where}.stages", f"end at layer {route.layers.stop}, {model.name} has {model.spec.num_layers}")
    if not 1 <= route.rows <= MAX_ROWS:
        raise BadPlan(f"{where}.rows", f"are {route.rows}, 1 to {MAX_ROWS} are served in a micro-batch")
    if route.micro_batches < 1:
        raise BadPlan(f"{where}.micro_batches", f"are {route.micro_batches}, at least one is needed")
    held = {allotment.device: allotment for allotment in plan.allotments}
    for place, stage in enumerate(route.stages):
        needed = slots_of(plan, stage.device)
        allotment = held.get(stage.device)
        if allotment is None or allotment.slots < needed:
            slots = "no" if allotment is None else allotment.slots
            raise BadPlan(
                f"{where}.rows",
                f"are {route.rows} of {route.micro_batches} micro-batches; {stage.device} has {slots} slots, and "
                f"{needed} rows of all routes go through it",
            )
        if not any(layers.covers(stage.layers) for layers in allotment.resident):
            raise BadPlan(f"{where}.stages[{place}].layers", f"{stage.layers} are not resident on {stage.device}")


def _allotment(spec: ModelSpec, plan: Plan, planned: Allotment, memory_bytes: int) -> Allotment:
    """What a device takes by the formula of today, of the memory it has today. Its slots are those that are used."""
    slots = slots_of(plan, planned.device)
    need = sum(_need(spec, plan, layers, slots).total for layers in planned.resident)
    return Allotment(planned.device, planned.resident, slots, need, memory_bytes)


def _need(spec: ModelSpec, plan: Plan, layers: LayerRange, slots: int) -> MemoryBreakdown:
    return memory_breakdown(
        spec, layers, quantization=plan.quantization, block_size=plan.block_size, slots=slots, context=plan.context
    )
