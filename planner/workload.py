"""What a plan is made for: how long prompts and answers are, how many at a time, and how weights and hops are coded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.types import BoundaryType, Codec, Quantization

Objective = Literal["latency", "throughput", "energy"]
Privacy = Literal["source-first", "trusted-ends", "none"]
"""source-first: layer 0 is on the source, so the tokens are. trusted-ends: the last layer and the head are there too.
none: any device may hold layer 0 and is the source then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of request. Raises ValueError naming the field."""

    quantization: Quantization
    block_size: int = 128
    boundary: BoundaryType = "fp16"
    codec: Codec = "fp16"
    prompt: int = 32
    """P, tokens of the prompt."""
    tokens: int = 96
    """G, tokens generated."""
    sessions: int = 1
    """Sequences whose KV cache has room at the same time: the batch limit m * mu."""
    context: int = 4096
    """Positions reserved per sequence."""
    chunk: int = 128
    """Prompt tokens per prefill frame."""
    counts_workspace: bool = True
    """Activations, scratch and sessions count as memory; off where a device's usable fraction stands for them."""
    counts_embedding: bool = False
    """The embedding counts as memory on the source; off where it is read through the memory map (see `memory`)."""

    def __post_init__(self) -> None:
        for name in ("block_size", "prompt", "tokens", "sessions", "context", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if self.prompt + self.tokens > self.context:
            raise ValueError(f"prompt {self.prompt} and tokens {self.tokens} exceed the context of {self.context}")

    @property
    def mean_context(self) -> int:
        """Tokens a row holds in the middle of its answer."""
        return self.prompt + self.tokens // 2
