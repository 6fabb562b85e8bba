"""Random models of the Llama family as Hugging Face directories, their logits by transformers, and ours.

For the parity tests and benchmarks/bench_parity.py. Needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from agent.compute.checkpoint import Checkpoint
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import SessionSettings
from planner.types import BoundaryType, LayerRange, Quantization

WIKI = Path(__file__).parents[2] / "examples" / "models" / "wiki-32l"
BOUND: dict[BoundaryType, float] = {"fp32": 1e-4, "fp16": 2e-3}
"""Largest difference over largest logit, by boundary type."""

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama-2": lambda: transformers.LlamaConfig(**(SIZES | {"num_key_value_heads": 4})),
    "llama-3": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-bias": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-yarn": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=YARN_ROPE),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=7, head_dim=32),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2-window": lambda: transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=32),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS = 24
SCHEDULE = ((0, 10), (10, 15), *((start, start + 1) for start in range(15, TOKENS)))
"""Prefill, a second chunk, then decode steps, as (first token, token after the last)."""


def save_random(name: str, dtype: str, path: Path) -> None:
    """A random model whose logits depend on every layer: HF's own initialisation is too small for that."""
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).float()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            spread = 0.15 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn_like(parameter) * spread + (1.0 if "norm" in parameter_name else 0.0))
    model.to(DTYPES[dtype]).save_pretrained(path)


def reference_logits(path: Path, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [s, V] of transformers in fp32 with eager attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: NDArray[np.float32] = model.eval()(torch.tensor(tokens[None])).logits[0].numpy()
    return logits


class Chain:
    """Executors that cover a model in order, as devices do."""

    def __init__(
        self,
        path: Path,
        edges: Sequence[int],
        *,
        boundary: BoundaryType = "fp16",
        quantization: Quantization = "fp32",
        cuts: tuple[int, ...] | None = None,
        slots: int = 2,
        context: int = 64,
    ) -> None:
        checkpoint = Checkpoint.open(path)
        self.ranges = [LayerRange(start, stop) for start, stop in pairwise(edges)]
        self.executors = [
            OnnxExecutor.load(
                checkpoint,
                ExecutorSettings(
                    resident=(layers,),
                    slots=slots,
                    context=context,
                    quantization=quantization,
                    block_size=32,
                    boundary=boundary,
                    session=SessionSettings(threads=1),
                    cuts=cuts,
                ),
            )
            for layers in self.ranges
        ]

    def run(self, tokens: NDArray[np.int64], slot: int, positions: Sequence[int]) -> NDArray[np.float32]:
        """Token ids [n, s] to logits [n, s, V]."""
        hidden = self.executors[0].embed(tokens)
        for executor, layers in zip(self.executors, self.ranges, strict=True):
            hidden = executor.forward(layers, hidden, slot, positions)
        return np.stack([self.executors[-1].logits(row) for row in hidden])

    def schedule(self, tokens: NDArray[np.int64], slot: int = 1) -> NDArray[np.float32]:
        parts = [self.run(tokens[None, start:stop], slot, [start])[0] for start, stop in SCHEDULE]
        return np.concatenate(parts)

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *exception: object) -> None:
        for executor in self.executors:
            executor.close()


def ratio(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())
