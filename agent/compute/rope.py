"""Rotary position embedding: inverse frequencies and the tables of cosines and sines that attention reads.

Pure NumPy. Follows transformers' `modeling_rope_utils`, down to the types: frequencies and angles are fp32 there, and
a model was trained with angles rounded like that.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from planner.model_spec import ModelSpec, RopeSpec

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Float32:
    """Radians per position for every pair of rotated elements, [rotary_dim / 2], slowest last."""
    dim = int(head_dim * rope.partial_rotary_factor)
    plain = rope.theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.rope_type == "linear":
        plain = plain / rope.factor
    elif rope.rope_type == "llama3":
        plain = _llama3(rope, plain)
    elif rope.rope_type == "yarn":
        plain = _yarn(rope, plain, dim)
    return plain.astype(np.float32)


def rotation_tables(spec: ModelSpec, positions: int) -> tuple[Float32, Float32]:
    """Cosine and sine tables, each [positions, rotary_dim / 2], scaled by yarn's attention factor."""
    frequencies = inverse_frequencies(spec.rope, spec.head_dim)
    # An fp32 product, as in transformers; its cosine in fp64, because NumPy's fp32 cosine differs between machines.
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies).astype(np.float64)
    scale = spec.rope.attention_factor
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def _llama3(rope: RopeSpec, plain: Float64) -> Float64:
    """Slow pairs are slowed by `factor`, fast ones kept, those between interpolated (Llama 3.1)."""
    turns = rope.original_max_positions * plain / (2 * math.pi)
    share: Float64 = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    return (1 - share) * plain / rope.factor + share * plain


def _yarn(rope: RopeSpec, plain: Float64, dim: int) -> Float64:
    """Pairs that turn more than `beta_fast` times in the original context are kept (arXiv 2309.00071, section 3.2)."""

    def pair_that_turns(times: float) -> float:
        return dim * math.log(rope.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    kept: Float64 = 1 - np.clip((np.arange(dim // 2) - low) / width, 0.0, 1.0)
    return plain / rope.factor * (1 - kept) + plain * kept
