from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.self_check import CHECKED_TOKENS, SCHEDULES, is_batch_invariant
from planner.types import LayerRange, Quantization
from tests.fakes.random_weights import RandomWeights

Float32 = NDArray[np.float32]


def settings(slots: int = 4, context: int = 80, quantization: Quantization = "int4") -> ExecutorSettings:
    return ExecutorSettings((LayerRange(1, 3),), slots, context, quantization, block_size=32)


class DependsOnNeighbours(OnnxExecutor):
    """A kernel whose rows change a little with the batch, as GEMMs on GPUs may."""

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        result = super().forward(layers, hidden, slot, positions)
        return result if len(positions) == 1 else result * np.float32(1 + 2**-12)


class DependsOnOddRows(OnnxExecutor):
    """A kernel that takes rows in pairs, and the last odd one otherwise."""

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        result: Float32 = super().forward(layers, hidden, slot, positions).copy()
        if hidden.shape[0] > 1 and hidden.shape[0] % 2:
            result[-1] *= np.float32(1 + 2**-12)
        return result


class DependsOnOddTokens(OnnxExecutor):
    """The same with the tokens of a chunk, as `MatMulNBits` does it where rows need pairs and have none."""

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        result: Float32 = super().forward(layers, hidden, slot, positions).copy()
        if hidden.shape[1] > 20 and hidden.shape[1] % 2:
            result[:, -1] *= np.float32(1 + 2**-12)
        return result


class DependsOnChunks(OnnxExecutor):
    """A kernel that sums in another order when it is given many tokens."""

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        result = super().forward(layers, hidden, slot, positions)
        return result if hidden.shape[1] < 70 else result * np.float32(1 + 2**-12)


@pytest.mark.parametrize("quantization", ["fp32", "int8", "int4"])
@pytest.mark.parametrize(("slots", "context"), [(16, 80), (5, 80), (1, 80), (2, 20), (3, 5), (3, 2), (1, 1)])
def test_cpu_provider_is_batch_invariant(quantization: Quantization, slots: int, context: int) -> None:
    executor = OnnxExecutor.load(RandomWeights(), settings(slots, context, quantization))
    assert is_batch_invariant(executor)


@pytest.mark.parametrize("executor", [DependsOnNeighbours, DependsOnOddRows, DependsOnOddTokens, DependsOnChunks])
def test_dependence_is_found(executor: type[OnnxExecutor]) -> None:
    assert not is_batch_invariant(executor.load(RandomWeights(), settings()))


def test_schedules_have_all_tokens_and_no_chunk_of_one() -> None:
    assert [sum(schedule) for schedule in SCHEDULES] == [CHECKED_TOKENS] * len(SCHEDULES)
    assert min(map(min, SCHEDULES)) > 1


def test_slots_can_be_used_afterwards() -> None:
    executor = OnnxExecutor.load(RandomWeights(), settings())
    x = np.random.default_rng(0).standard_normal((1, 5, 64), dtype=np.float32)
    before = executor.forward(LayerRange(1, 3), x, 0, [0]).copy()
    assert is_batch_invariant(executor)
    np.testing.assert_array_equal(executor.forward(LayerRange(1, 3), x, 0, [0]), before)
