"""What a model is, read from its config.json, and the memory a part of it takes.

Pure and standard library only: the planner decides with this formula and the agent checks the same one before it
loads. Supported: Llama 1/2/3, Mistral, Qwen2 and Qwen3; everything we would compute wrongly is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["llama", "mistral", "qwen2", "qwen3"]
RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. Fields a `rope_type` does not use keep their defaults; see `agent.compute.rope`."""

    theta: float = 10000.0
    rope_type: RopeType = "default"
    partial_rotary_factor: float = 1.0
    """Share of each head that rotates: `int(head_dim * partial_rotary_factor)` elements."""
    factor: float = 1.0
    """Context extension; linear, llama3 and yarn."""
    original_max_positions: int = 0
    """Context before extension; llama3 and yarn."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Multiplies cos and sin; yarn, already worked out from factor, mscale and mscale_all_dim."""
    truncate: bool = True
    """Yarn: correction range rounded to whole dimensions."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder-only transformer of the Llama family."""

    architecture: Architecture
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope: RopeSpec
    tied_embeddings: bool
    """The head is the embedding matrix."""
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMS norm over head_dim of every query and key head, before the rotation (Qwen3)."""
    sliding_windows: tuple[int | None, ...]
    """One per layer: a token sees itself and the `window - 1` tokens before it; None is full attention."""

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Elements of each head that rotate; even."""
        return int(self.head_dim * self.rope.partial_rotary_factor)
