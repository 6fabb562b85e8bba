"""Which layers a device loads to be timed: enough that they do not fit a cache, no more than its memory holds.

A layer that stays in the cache looks faster than one that is streamed from memory, as all of them are in serving. Two
layer ranges of different length are loaded together, so that what a run costs beside its layers can be told apart.
Where memory holds one layer only, layers are loaded one after another (EdgeShard, arXiv 2405.14371, section III).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import OutOfMemory
from planner.memory import layer_weight_bytes, memory_bytes
from planner.model_spec import ModelSpec
from planner.types import LayerRange, Quantization

STREAMED_BYTES = 256 << 20
"""Weights of this size are read from memory: several times the last-level cache of any device this is for."""

MIB = 1 << 20

Resident = tuple[LayerRange, ...]


@dataclass(frozen=True, slots=True)
class SampleLayers:
    """What is loaded, one set after the other, and for which runs there is room."""

    loads: tuple[Resident, ...]
    rows: tuple[int, ...]
    """Ascending; those for which there is no memory are gone."""
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    missing: dict[str, str]

    @property
    def slots(self) -> int:
        return self.rows[-1]

    @property
    def context(self) -> int:
        """Room for the longest run: one token behind the longest context, or the longest prompt."""
        return max(self.contexts[-1] + 1, self.prompts[-1])


def choose_layers(
    spec: ModelSpec,
    *,
    quantization: Quantization,
    block_size: int,
    rows: Sequence[int],
    contexts: Sequence[int],
    prompts: Sequence[int],
    available_bytes: int,
) -> SampleLayers:
    """The loads for a device with `available_bytes` for a model; contexts and prompts are cut to the model's positions.

    Raises OutOfMemory when not even one layer with one row fits.
    """
    context_limit = spec.max_positions
    asked = SampleLayers(
        loads=(),
        rows=tuple(sorted(set(rows))),
        contexts=tuple(sorted({min(context, context_limit - 1) for context in contexts})),
        prompts=tuple(sorted({min(prompt, context_limit) for prompt in prompts})),
        missing={},
    )
    layer_bytes = layer_weight_bytes(spec, quantization, block_size)
    wanted = min(spec.num_layers, max(2, -(-STREAMED_BYTES // layer_bytes)))

    def fits(resident: Resident, slots: int) -> bool:
        return _needed(spec, resident, quantization, block_size, slots=slots, context=asked.context) <= available_bytes

    for count in range(len(asked.rows), 0, -1):
        kept = asked.rows[:count]
        for layers in range(wanted, 0, -1):
            loads = _loads(spec.num_layers, layers)
            if all(fits(resident, kept[-1]) for resident in loads):
                return SampleLayers(loads, kept, asked.contexts, asked.prompts, _without(asked.rows[count:], "rows"))
    # The head and one layer may be too much where a layer alone is not: such a device can be in the middle.
    middle: tuple[Resident, ...] = ((LayerRange(0, 1),),)
    if spec.num_layers > 1 and fits(middle[0], asked.rows[0]):
        missing = _without(asked.rows[1:], "rows")
        missing["head"] = (
            f"head and one layer do not fit in {available_bytes // MIB} MiB; scaled by weights from layers"
        )
        return SampleLayers(middle, asked.rows[:1], asked.contexts, asked.prompts, missing)
    smallest = (LayerRange(0, 1),)
    needed = _needed(spec, smallest, quantization, block_size, slots=asked.rows[0], context=asked.context)
    raise OutOfMemory(
        f"{-(-(needed - available_bytes) // MIB)} MiB short to time one layer: it needs {-(-needed // MIB)} MiB with "
        f"{asked.rows[0]} rows of {asked.context} tokens; {available_bytes // MIB} MiB available"
    )


def _loads(num_layers: int, layers: int) -> tuple[Resident, ...]:
    """`layers` of the model's layers in two ranges at its two ends, or single ones from begin, middle and end."""
    if num_layers == 1:
        return ((LayerRange(0, 1),),)
    if layers == 1:
        return tuple((LayerRange(n, n + 1),) for n in sorted({0, num_layers // 2, num_layers - 1}))
    few = max(1, layers // 4)
    return ((LayerRange(0, few), LayerRange(num_layers - layers + few, num_layers)),)


def _needed(
    spec: ModelSpec, resident: Resident, quantization: Quantization, block_size: int, *, slots: int, context: int
) -> int:
    return sum(
        memory_bytes(spec, layers, quantization=quantization, block_size=block_size, slots=slots, context=context)
        for layers in resident
    )


def _without(rows: Sequence[int], what: str) -> dict[str, str]:
    return {"decode": f"no memory for {what} {', '.join(map(str, rows))}"} if rows else {}
