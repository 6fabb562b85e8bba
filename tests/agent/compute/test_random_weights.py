"""Random weights: what a checkpoint of that model would offer, at a price that does not grow with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.random_weights import MOST_DRAWN, RandomWeights
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL

LARGE = dataclasses.replace(
    SMALL, hidden_size=5120, intermediate_size=13824, num_heads=40, num_kv_heads=8, head_dim=128
)


@pytest.mark.parametrize("name", ["model.layers.3.self_attn.k_proj.weight", "model.embed_tokens.weight"])
def test_a_tensor_depends_on_its_name_only(name: str) -> None:
    first, again = (RandomWeights(SMALL).tensor(name) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], RandomWeights(SMALL).tensor("lm_head.weight")[0])


def test_a_large_tensor_has_its_shape_and_spread_and_owns_little() -> None:
    tensor = RandomWeights(LARGE, spread=0.5).tensor("model.layers.0.mlp.down_proj.weight")
    assert tensor.shape == (5120, 13824)
    assert (tensor.shape[0] - 1) * tensor.strides[0] <= 4 * MOST_DRAWN, "rows overlap"
    assert not tensor.flags.writeable
    assert np.std(tensor[::64, ::7]) == pytest.approx(0.5, rel=0.02)
    assert len(np.unique(tensor[:, 0])) > 5000, "rows differ"


def test_more_rows_than_are_drawn_still_have_their_shape() -> None:
    vocabulary = dataclasses.replace(LARGE, vocab_size=2 * MOST_DRAWN)
    tensor = RandomWeights(vocabulary).tensor("lm_head.weight")
    assert tensor.shape == (2 * MOST_DRAWN, 5120)
    assert np.isfinite(tensor[-1]).all()


def test_an_executor_computes_finite_values_with_them() -> None:
    settings = ExecutorSettings(resident=(LayerRange(0, 4),), slots=1, context=8, quantization="int4", block_size=32)
    executor = OnnxExecutor.load(RandomWeights(SMALL), settings)
    hidden = executor.forward(LayerRange(0, 4), executor.embed(np.array([[1, 2, 3]])), 0, (0,))
    assert np.isfinite(executor.logits(hidden[:, -1])).all()
    executor.close()
