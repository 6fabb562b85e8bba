"""The memory formula as a planner needs it: for one workload, and taken apart into what adds up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.memory import memory_breakdown
from planner.model_spec import ModelSpec
from planner.types import LayerRange, Quantization
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """A range of n layers takes `stage + n * layer`, and more where it holds the first or the last one."""

    stage: int
    layer: int
    first: int
    """The embedding, where it counts."""
    last: int
    """Final norm, head and logits."""

    def of(self, layers: LayerRange, num_layers: int) -> int:
        ends = self.first * (layers.start == 0) + self.last * (layers.stop == num_layers)
        return self.stage + len(layers) * self.layer + ends


def embedding_bytes(spec: ModelSpec, quantization: Quantization) -> int:
    """The embedding in the type checkpoints of this quantization come in: it is never quantized itself."""
    return spec.hidden_size * spec.vocab_size * (4 if quantization == "fp32" else 2)


def stage_memory(spec: ModelSpec, workload: Workload, sessions: int | None = None) -> MemoryParts:
    """What a device holds for a layer range and KV cache of `sessions` sequences (the workload's if None)."""
    slots = workload.sessions if sessions is None else sessions
    # Two layers more than the model has, so that a range of one or two need not be the first or the last.
    longer = replace(spec, num_layers=spec.num_layers + 2)

    def total(start: int, stop: int) -> int:
        parts = memory_breakdown(
            longer,
            LayerRange(start, stop),
            quantization=workload.quantization,
            block_size=workload.block_size,
            slots=slots,
            context=workload.context,
        )
        return parts.total if workload.counts_workspace else parts.total - parts.workspace

    one, two = total(0, 1), total(0, 2)
    return MemoryParts(
        stage=2 * one - two,
        layer=two - one,
        first=embedding_bytes(spec, workload.quantization) if workload.counts_embedding else 0,
        last=total(longer.num_layers - 1, longer.num_layers) - one,
    )
