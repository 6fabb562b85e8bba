"""The product's random weights with a small model and a spread that makes its values move."""

from __future__ import annotations

from agent.compute import random_weights
from planner.model_spec import ModelSpec, RopeSpec

SMALL = ModelSpec(
    architecture="llama",
    num_layers=4,
    hidden_size=64,
    intermediate_size=160,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=300,
    max_positions=256,
    rms_norm_eps=1e-5,
    rope=RopeSpec(),
    tied_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_windows=(None,) * 4,
)


class RandomWeights(random_weights.RandomWeights):
    """Satisfies `onnx_executor.Weights`."""

    def __init__(self, spec: ModelSpec = SMALL, spread: float = 0.15) -> None:
        super().__init__(spec, spread)
