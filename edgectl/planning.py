"""What is to be served, and the plan for it: joins the options of `serve` or a plan file, the model and the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import ConfigError
from edgectl.deploy import Order
from planner.errors import BadPlan, Infeasible
from planner.memory import MemoryBreakdown, memory_breakdown
from planner.memory_proportional import memory_proportional
from planner.model_spec import ModelSpec
from planner.types import Allotment, BoundaryType, Codec, Device, LayerRange, Plan, Quantization, Stage

DEFAULT_CONTEXT_TOKENS = 4096
"""Context without --context, if the model has that many positions: a chat, with a KV cache for small devices."""

DEFAULT_BLOCK_SIZE = 128
"""Weights that share a scale in int8 and int4. Decoding reads all of them for every token: block 128 has 4.6 bits per
weight, block 32 has 6.25 and a perplexity 0.7 % better (docs/log.md, 2026-11-21)."""


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
    slots: int = 1
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

    def plan_for(present: Sequence[Device]) -> Plan:
        return memory_proportional(
            model.name,
            model.spec,
            present,
            quantization=options.quantization,
            block_size=options.block_size,
            boundary=options.boundary,
            codec=options.codec or options.boundary,
            context=context,
            slots=options.slots,
            source=options.source,
        )

    return Order(
        model=model.name,
        digest=model.digest,
        plan_for=plan_for,
        devices=tuple(devices),
        min_devices=len(devices) if min_devices is None else min_devices,
        source=options.source,
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


def order_of_plan(model: ServedModel, plan: Plan, devices: Sequence[str]) -> Order:
    """Brings a plan onto the devices of cluster.toml as it is; all of its devices are waited for.

    Raises BadPlan for a plan of another model, with unknown devices, or of a kind that is not executed yet. That a
    device has less memory than the plan needs shows when it has said Hello: `plan_for` raises Infeasible then.
    """
    _check_executable(model, plan, devices)
    stages = plan.routes[0].stages
    used = {stage.device for stage in stages}

    def plan_for(present: Sequence[Device]) -> Plan:
        memory = {device.name: device.memory_bytes for device in present}
        allotments = tuple(_allotment(model.spec, plan, stage, memory[stage.device]) for stage in stages)
        causes = [
            f"{each.device}: {-(-(each.memory_bytes - each.memory_available_bytes) >> 20)} MiB short for layers "
            f"{each.resident[0]}, {_need(model.spec, plan, each.resident[0], each.slots)}"
            for each in allotments
            if each.memory_bytes > each.memory_available_bytes
        ]
        if causes:
            raise Infeasible(f"{plan.model} no longer fits as planned; profile and plan again", causes)
        return replace(plan, allotments=allotments)

    return Order(
        model=model.name,
        digest=model.digest,
        plan_for=plan_for,
        devices=tuple(name for name in devices if name in used),
        min_devices=len(used),
        source=plan.routes[0].source,
    )


def not_executed_yet(plan: Plan) -> BadPlan | None:
    """Why `serve --plan` refuses every plan of this kind; None where it does not."""
    if len(plan.routes) != 1:
        return BadPlan("routes", f"there are {len(plan.routes)}, one is served at a time; plan without --replicas")
    stages = plan.routes[0].stages
    for place, stage in enumerate(stages):
        if stage.device in [other.device for other in stages[:place]]:
            return BadPlan(
                f"routes[0].stages[{place}].device",
                f"{stage.device} has a stage already: agents run one stage of a route each, so that a route cannot end "
                "where it began; plan with --privacy source-first",
            )
    return None


def _check_executable(model: ServedModel, plan: Plan, devices: Sequence[str]) -> None:
    if plan.model != model.name:
        raise BadPlan("model", f"is {plan.model}, but {model.name} is to be served; plan for that model")
    refusal = not_executed_yet(plan)
    if refusal is not None:
        raise refusal
    stages = plan.routes[0].stages
    for place, stage in enumerate(stages):
        if stage.device not in devices:
            known = ", ".join(devices) or "none"
            raise BadPlan(
                f"routes[0].stages[{place}].device", f"{stage.device} is not in cluster.toml, which has {known}"
            )
    layers = plan.routes[0].layers.stop
    if layers != model.spec.num_layers:
        raise BadPlan("routes[0].stages", f"end at layer {layers}, {model.name} has {model.spec.num_layers}")
    if not 3 <= plan.context <= model.spec.max_positions:
        raise BadPlan("context", f"is {plan.context}, {model.name} has 3 to {model.spec.max_positions} positions")
    held = {allotment.device: allotment.slots for allotment in plan.allotments}
    for stage in stages:
        if held.get(stage.device, 0) < plan.routes[0].rows:
            slots = held.get(stage.device, "no")
            raise BadPlan("routes[0].rows", f"are {plan.routes[0].rows}, {stage.device} has {slots} slots")


def _allotment(spec: ModelSpec, plan: Plan, stage: Stage, memory_bytes: int) -> Allotment:
    """What a stage takes by the formula of today, of the memory its device has today."""
    slots = plan.allotment(stage.device).slots
    need = _need(spec, plan, stage.layers, slots)
    return Allotment(stage.device, (stage.layers,), slots, need.total, memory_bytes)


def _need(spec: ModelSpec, plan: Plan, layers: LayerRange, slots: int) -> MemoryBreakdown:
    return memory_breakdown(
        spec, layers, quantization=plan.quantization, block_size=plan.block_size, slots=slots, context=plan.context
    )
