"""The project's vocabulary: layer ranges, devices, routes, plans.

Owns the types that every package shares. Standard library only: a device that runs the agent imports this file.
Words are those of ARCHITECTURE.md; a layer range is half-open, like `range`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Quantization = Literal["fp32", "fp16", "int8", "int4"]
BoundaryType = Literal["fp32", "fp16", "bf16"]
Codec = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Pipeline = Literal["no-bubbles", "bubbles", "sequential"]
"""When a micro-batch begins its next step: the moment its token is back; when every micro-batch's is; when no other is
under way. The last two are there to compare with (EdgeShard, arXiv 2405.14371, section IV-C)."""


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Decoder layers `[start, stop)`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"layer range [{self.start}, {self.stop}) is empty or negative")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def covers(self, other: LayerRange) -> bool:
        return self.start <= other.start and other.stop <= self.stop

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that can hold layers, as the planner sees it."""

    name: str
    memory_bytes: int
    """What the device may spend on a model: available memory less its reserve, or the owner's limit."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A layer range at one place of a route."""

    device: str
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Route:
    """Stages that cover every layer of the model once, in order.

    Raises ValueError when they do not start at layer 0 or leave a gap.
    """

    stages: tuple[Stage, ...]
    micro_batches: int = 1
    rows: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a route needs at least one stage")
        expected = 0
        for stage in self.stages:
            if stage.layers.start != expected:
                raise ValueError(f"stage {stage.device} starts at layer {stage.layers.start}, expected {expected}")
            expected = stage.layers.stop

    @property
    def source(self) -> str:
        """The device that holds the tokens and drives the token loop."""
        return self.stages[0].device

    @property
    def layers(self) -> LayerRange:
        return LayerRange(0, self.stages[-1].layers.stop)


@dataclass(frozen=True, slots=True)
class Allotment:
    """What one device keeps resident for a plan, and the memory this takes."""

    device: str
    resident: tuple[LayerRange, ...]
    slots: int
    memory_bytes: int
    memory_available_bytes: int


@dataclass(frozen=True, slots=True)
class StageCost:
    """What the planner expects of one stage per decoded token, in milliseconds."""

    compute_ms: float
    hop_ms: float
    """Behind the stage: hidden states to the next one, or the token back to the source."""
    wait_ms: float = 0.0
    """How long a micro-batch stands before the stage when the pipeline is full; 0 for one session."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which layers run where: what a planner returns, `serve` executes and `bench` measures."""

    model: str
    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    codec: Codec
    context: int
    routes: tuple[Route, ...]
    allotments: tuple[Allotment, ...]
    predicted: dict[str, float] = field(default_factory=dict)
    """ms_per_token, time_to_first_token_ms, tokens_per_s, joules_per_token; what is unknown is left out."""
    costs: tuple[StageCost, ...] = ()
    """One per stage of the first route, where the planner knows times."""

    def allotment(self, device: str) -> Allotment:
        """Raises KeyError for a device the plan does not use."""
        for allotment in self.allotments:
            if allotment.device == device:
                return allotment
        raise KeyError(device)
