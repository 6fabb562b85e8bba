"""A checkpoint of random weights made on the spot: no file, no torch."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


class RandomWeights:
    """Satisfies `onnx_executor.Weights`. A tensor depends on its name only; norms are 1, matrices have `spread`."""

    def __init__(self, spec: ModelSpec = SMALL, spread: float = 0.15) -> None:
        self.spec = spec
        self.spread = spread

    def tensor(self, name: str) -> NDArray[Any]:
        shape = self._shape(name)
        if len(shape) == 1 and not name.endswith(".bias"):
            return np.ones(shape, np.float32)
        random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        return random.standard_normal(shape, dtype=np.float32) * np.float32(self.spread)

    def _shape(self, name: str) -> tuple[int, ...]:
        spec = self.spec
        part = name.split(".")[-2]
        rows = {
            "embed_tokens": (spec.vocab_size, spec.hidden_size),
            "lm_head": (spec.vocab_size, spec.hidden_size),
            "q_proj": (spec.q_size, spec.hidden_size),
            "k_proj": (spec.kv_size, spec.hidden_size),
            "v_proj": (spec.kv_size, spec.hidden_size),
            "o_proj": (spec.hidden_size, spec.q_size),
            "gate_proj": (spec.intermediate_size, spec.hidden_size),
            "up_proj": (spec.intermediate_size, spec.hidden_size),
            "down_proj": (spec.hidden_size, spec.intermediate_size),
            "q_norm": (spec.head_dim,),
            "k_norm": (spec.head_dim,),
        }
        shape = rows.get(part, (spec.hidden_size,))
        return shape[:1] if name.endswith(".bias") else shape
