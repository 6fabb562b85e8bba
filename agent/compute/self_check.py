"""Start-up check of what fail-over and batching rest on: tokens do not depend on neighbours or chunks.

Measured true on ONNX Runtime's CPU provider; checked anew on every device because it is a property of kernels.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.compute.executor import Executor
from planner.types import LayerRange

Float32 = NDArray[np.float32]

CHUNK_TOKENS = 64
CHECKED_TOKENS = 72
PAIRED_TOKENS = 8
CHECKED_ROWS = 4


class BlockExecutor(Executor, Protocol):
    """An executor that says where its blocks begin and end."""

    blocks: tuple[LayerRange, ...]


def is_batch_invariant(executor: BlockExecutor, seed: int = 0) -> bool:
    """Whether rows of a batch equal single rows and chunks of 2, 64 and all tokens each other, bit for bit.

    Runs the first block only and leaves its slots to be rewound. Too small a context or pool shortens the check.
    """
    layers = executor.blocks[0]
    tokens = min(CHECKED_TOKENS, executor.context // 2 * 2)
    if tokens < 2:
        return True
    random = np.random.Generator(np.random.PCG64(seed))
    prompt = random.standard_normal((1, tokens, executor.spec.hidden_size), dtype=np.float32)
    whole = _prefill(executor, layers, prompt, 0, tokens)
    # A chunk is never one token: attention at length 1 takes another kernel.
    pairs = prompt[:, : min(PAIRED_TOKENS, tokens)]
    if not np.array_equal(_prefill(executor, layers, pairs, 0, 2), whole[:, : pairs.shape[1]]):
        return False
    if tokens - CHUNK_TOKENS > 1 and not np.array_equal(_prefill(executor, layers, prompt, 0, CHUNK_TOKENS), whole):
        return False
    rows = min(CHECKED_ROWS, executor.slots)
    positions = [min(2 + row, tokens) for row in range(rows)]
    for slot, position in enumerate(positions):
        _prefill(executor, layers, prompt[:, :position], slot, position)
    step = random.standard_normal((rows, 1, executor.spec.hidden_size), dtype=np.float32)
    together = executor.forward(layers, step, 0, positions).copy()
    alone = [executor.forward(layers, step[row : row + 1], row, [positions[row]]).copy() for row in range(rows)]
    return np.array_equal(together, np.concatenate(alone))


def _prefill(executor: Executor, layers: LayerRange, prompt: Float32, slot: int, chunk: int) -> Float32:
    outputs = [
        executor.forward(layers, prompt[:, start : start + chunk], slot, [start]).copy()
        for start in range(0, prompt.shape[1], chunk)
    ]
    return np.concatenate(outputs, axis=1)
