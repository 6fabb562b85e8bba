"""What is to be served, and the plan for it: joins the options of `serve`, the model and the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgectl.deploy import Order
from planner.memory_proportional import memory_proportional
from planner.model_spec import ModelSpec
from planner.types import BoundaryType, Codec, Device, Plan, Quantization

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
