"""Start-up check of what fail-over and batching rest on: tokens do not depend on neighbours or chunks.

Measured true on ONNX Runtime's CPU provider; checked anew on every device because it is a property of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.compute.executor import Executor
from planner.types import LayerRange

Float32 = NDArray[np.float32]

CHECKED_TOKENS = 72
SCHEDULES = ((*range(2, 12), 7), (33, 39))
"""Chunks that make CHECKED_TOKENS, against one chunk of all: every remainder of what kernels take at once, odd sizes in
the middle and at the end. A chunk is never one token: attention at length 1 takes another kernel."""
CHECKED_ROWS = 16
"""As many as a micro-batch may have."""


class BlockExecutor(Executor, Protocol):
    """An executor that says where its blocks begin and end."""

    blocks: tuple[LayerRange, ...]


def is_batch_invariant(executor: BlockExecutor, seed: int = 0) -> bool:
    """Whether rows of a batch equal single rows and chunks of many sizes one of all tokens, bit for bit.

    Runs the first block only and leaves its slots to be rewound. Too small a context or pool shortens the check.
    """
    layers = executor.blocks[0]
    tokens = min(CHECKED_TOKENS, executor.context // 2 * 2)
    if tokens < 2:
        return True
    random = np.random.Generator(np.random.PCG64(seed))
    prompt = random.standard_normal((1, tokens, executor.spec.hidden_size), dtype=np.float32)
    whole = _prefill(executor, layers, prompt, 0, [tokens])
    for schedule in SCHEDULES:
        sizes = _shortened(schedule, tokens)
        if len(sizes) > 1 and not np.array_equal(_prefill(executor, layers, prompt, 0, sizes), whole):
            return False
    rows = min(CHECKED_ROWS, executor.slots)
    positions = [min(2 + row % 4, tokens) for row in range(rows)]
    for slot, position in enumerate(positions):
        _prefill(executor, layers, prompt[:, :position], slot, [position])
    step = random.standard_normal((rows, 1, executor.spec.hidden_size), dtype=np.float32)
    alone = [executor.forward(layers, step[row : row + 1], row, [positions[row]]).copy() for row in range(rows)]
    # All of them, and one less: an odd number of rows, or an even one, that does not begin at the first slot.
    return all(
        np.array_equal(executor.forward(layers, step[first:], first, positions[first:]), np.concatenate(alone[first:]))
        for first in range(min(2, rows))
    )


def _shortened(schedule: Sequence[int], tokens: int) -> list[int]:
    """The first chunks of a schedule, `tokens` in all and none of one token."""
    sizes: list[int] = []
    for size in schedule:
        left = tokens - sum(sizes)
        if left <= size + 1:
            return [*sizes, left] if left else sizes
        sizes.append(size)
    return sizes


def _prefill(executor: Executor, layers: LayerRange, prompt: Float32, slot: int, sizes: Sequence[int]) -> Float32:
    """The outputs of a prompt [1, tokens, H] that comes in chunks of these sizes."""
    outputs, start = [], 0
    for size in sizes:
        outputs.append(executor.forward(layers, prompt[:, start : start + size], slot, [start]).copy())
        start += size
    return np.concatenate(outputs, axis=1)
