"""A checkpoint with random weights of a real model's shape, in Hugging Face layout, for speed measurements.

The tokenizer is the bundled model's: its ids are valid in every larger vocabulary, and text does not matter here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BUNDLED = Path(__file__).resolve().parents[1] / "examples" / "models" / "wiki-32l"
SHAPES: dict[str, dict[str, int]] = {
    # name: layers, hidden, intermediate, heads, key-value heads, head dimension, vocabulary
    "random-1.1b": {
        "num_hidden_layers": 22,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32000,
    },
    "random-wide": {
        "num_hidden_layers": 2,
        "hidden_size": 8192,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "vocab_size": 4096,
    },
}
"""TinyLlama-1.1B's shape, and Llama-2-70B's width with little to compute: for what a link costs."""


def write(directory: Path, name: str = "random-1.1b", layers: int | None = None) -> Path:
    """Write the model below `directory` unless it is there; returns its directory. fp16, seeded."""
    shape = {**SHAPES[name], **({"num_hidden_layers": layers} if layers else {})}
    path = directory / (name if layers is None else f"{name}-{layers}l")
    if (path / "config.json").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(BUNDLED / file, path / file)
    rng = np.random.default_rng(0)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    query = shape["num_attention_heads"] * shape["head_dim"]
    key = shape["num_key_value_heads"] * shape["head_dim"]
    matrices = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    index: dict[str, str] = {}

    def save(file: str, tensors: dict[str, np.ndarray]) -> None:
        save_file(tensors, path / file)
        index.update(dict.fromkeys(tensors, file))

    def random(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns), dtype=np.float32) * 0.02).astype(np.float16)

    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}{name}.weight": random(*size) for name, size in matrices.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(hidden, np.float16)
        save(f"model-{layer:05d}.safetensors", tensors)
    save(
        "model-ends.safetensors",
        {
            "model.embed_tokens.weight": random(shape["vocab_size"], hidden),
            "lm_head.weight": random(shape["vocab_size"], hidden),
            "model.norm.weight": np.ones(hidden, np.float16),
        },
    )
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = json.loads((BUNDLED / "config.json").read_text())
    config |= shape | {"tie_word_embeddings": False}
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path
