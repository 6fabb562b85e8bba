"""Routes of devices a, b, c, … that exist in name only."""

from __future__ import annotations

from agent.wire.addresses import StageAddress
from agent.wire.messages import OpenMicroBatch


def route(*stops: int) -> tuple[StageAddress, ...]:
    """A stage per number: the layer at which it ends and the next begins."""
    starts = (0, *stops)
    return tuple(
        StageAddress(name, f"tcp://{name}:1", "k", start, stop)
        for name, start, stop in zip("abcdef", starts, stops, strict=False)
    )


def opening(stages: tuple[StageAddress, ...], rows: int = 4, chunk: int = 4) -> OpenMicroBatch:
    """Of micro-batch 7 in epoch 3."""
    return OpenMicroBatch(7, 3, rows, chunk, "fp16", stages)
