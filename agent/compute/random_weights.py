"""A checkpoint of random weights made on the spot: no file, and cheap for models of any size.

Speed does not depend on what weights hold, so a device without a model can be timed for it. Norms are 1, so values
stay finite through any number of layers.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from agent.compute.weights import MadeFromTensors
from planner.model_spec import ModelSpec

MOST_DRAWN = 1 << 20
"""Elements that are drawn for one tensor. A larger one shows them again in every row, a few places further on."""


class RandomWeights(MadeFromTensors):
    """Satisfies `weights.Weights`. A tensor depends on its name and shape only; matrices have `spread`."""

    def __init__(self, spec: ModelSpec, spread: float = 0.02) -> None:
        self.spec = spec
        self.spread = spread

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor of the model in fp32 by its Hugging Face name; a large one is a read-only view that owns little."""
        shape = self._shape(name)
        if len(shape) == 1 and not name.endswith(".bias"):
            return np.ones(shape, np.float32)
        random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        if np.prod(shape) <= MOST_DRAWN:
            whole: NDArray[np.float32] = random.standard_normal(shape, dtype=np.float32) * np.float32(self.spread)
            return whole
        rows, columns = shape
        # Row r begins at element r * step of one drawn sequence: rows differ, and 4 GiB of embedding take 5 MiB.
        step = max(1, (MOST_DRAWN - columns) // rows)
        drawn = random.standard_normal((rows - 1) * step + columns, dtype=np.float32) * np.float32(self.spread)
        view: NDArray[np.float32] = as_strided(drawn, shape, (4 * step, 4), writeable=False)
        return view

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
