"""The probe against matrices of real shape: what it says of a kernel must be true of the kernel."""

from __future__ import annotations

import numpy as np
import pytest

from agent.compute.graph_writer import GraphOptions
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import SessionSettings
from agent.compute.row_probe import needs_pairs
from planner.types import LayerRange, Quantization
from tests.fakes.random_weights import SMALL, RandomWeights


def test_float_matrices_need_no_pairs() -> None:
    assert not needs_pairs(SessionSettings(1), GraphOptions("fp32", 128, "fp16", 32))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_with_what_the_probe_says_a_row_is_the_same_alone_and_among_others(
    quantization: Quantization, block_size: int
) -> None:
    """The whole way: rows through layers and head, alone, and with each number of rows up to seven."""
    settings = ExecutorSettings((LayerRange(0, SMALL.num_layers),), 7, 16, quantization, block_size)
    executor = OnnxExecutor.load(RandomWeights(), settings)
    layers = settings.resident[0]
    prompt = np.arange(3)[None]
    for slot in range(7):
        executor.forward(layers, executor.embed(prompt + slot), slot, [0])
    step = np.random.default_rng(0).standard_normal((7, 1, SMALL.hidden_size), dtype=np.float32)
    hidden = [executor.forward(layers, step[row : row + 1], row, [3])[:, 0].copy() for row in range(7)]
    alone = np.concatenate([executor.logits(row) for row in hidden])
    for rows in range(2, 8):
        together = executor.forward(layers, step[:rows], 0, [3] * rows)[:, 0]
        np.testing.assert_array_equal(together, np.concatenate(hidden[:rows]))
        np.testing.assert_array_equal(executor.logits(together), alone[:rows])
