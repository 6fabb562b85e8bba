"""Writes Llama models in llama.cpp's format, Q4_0 matrices, without a tokenizer. Imports nothing of ours; needs gguf.

Random weights for speed; a checkpoint's own weights for perplexity.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Shape = dict[str, int]
BLOCK = 32
"""Elements of a Q4_0 block: 16 bytes of values and an fp16 scale, 4.5 bits each."""


def write_random(path: Path, shape: Shape) -> None:
    """Random blocks, all of one scale; the embedding is Q4_0 as well."""
    random = np.random.default_rng(0)

    def quantized(name: str, rows: int, columns: int) -> np.ndarray:
        blocks: Any = random.integers(0, 256, (rows, columns // BLOCK, 18), dtype=np.uint8)
        blocks[:, :, :2] = np.array([0.005], np.float16).view(np.uint8)
        return blocks.reshape(rows, -1)

    _write(path, shape, quantized, lambda name, size: np.ones(size, np.float32))


def write_checkpoint(path: Path, directory: Path) -> Shape:
    """The weights of a checkpoint in one safetensors file; the embedding stays fp16. Returns its shape."""
    import gguf

    config = json.loads((directory / "config.json").read_text())
    shape = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "vocab_size": config["vocab_size"],
    }
    tensors = _tensors(directory / "model.safetensors")
    heads = {"attn_q": shape["num_heads"], "attn_k": shape["num_kv_heads"]}

    def quantized(name: str, rows: int, columns: int) -> np.ndarray:
        matrix = tensors[_NAMES[name.split(".")[-2]].format(layer=name.split(".")[1])].astype(np.float32)
        if name.split(".")[-2] in heads:
            # llama.cpp turns neighbours where Hugging Face turns halves of a head against each other.
            halves = matrix.reshape(heads[name.split(".")[-2]], 2, -1, columns)
            matrix = halves.swapaxes(1, 2).reshape(rows, columns)
        if name.startswith("token_embd"):
            return matrix.astype(np.float16)
        return gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q4_0)

    def vector(name: str, size: int) -> np.ndarray:
        return tensors[_NAMES[name.split(".")[-2]].format(layer=name.split(".")[1])].astype(np.float32)

    _write(path, shape, quantized, vector)
    return shape


_NAMES = {
    "token_embd": "model.embed_tokens.weight",
    "output": "model.embed_tokens.weight",
    "output_norm": "model.norm.weight",
    "attn_norm": "model.layers.{layer}.input_layernorm.weight",
    "ffn_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "attn_q": "model.layers.{layer}.self_attn.q_proj.weight",
    "attn_k": "model.layers.{layer}.self_attn.k_proj.weight",
    "attn_v": "model.layers.{layer}.self_attn.v_proj.weight",
    "attn_output": "model.layers.{layer}.self_attn.o_proj.weight",
    "ffn_gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "ffn_up": "model.layers.{layer}.mlp.up_proj.weight",
    "ffn_down": "model.layers.{layer}.mlp.down_proj.weight",
}
"""llama.cpp's names and the checkpoint's; the output matrix is tied to the embedding."""


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file of fp16."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(data[start + begin : start + end], np.float16).reshape(entry["shape"])
    return found


def _write(
    path: Path,
    shape: Shape,
    quantized: Callable[[str, int, int], np.ndarray],
    vector: Callable[[str, int], np.ndarray],
) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    query_size, kv_size = shape["num_heads"] * shape["head_dim"], shape["num_kv_heads"] * shape["head_dim"]
    writer.add_block_count(shape["num_layers"])
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(shape["num_heads"])
    writer.add_head_count_kv(shape["num_kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)

    def matrix(name: str, rows: int, columns: int) -> None:
        array = quantized(name, rows, columns)
        packed = {} if array.dtype != np.uint8 else {"raw_dtype": gguf.GGMLQuantizationType.Q4_0}
        writer.add_tensor(name, array, **packed)

    matrix("token_embd.weight", vocabulary, hidden)
    matrix("output.weight", vocabulary, hidden)
    writer.add_tensor("output_norm.weight", vector("output_norm.weight", hidden))
    for layer in range(shape["num_layers"]):
        prefix = f"blk.{layer}."
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{prefix}{part}.weight", vector(f"{prefix}{part}.weight", hidden))
        for part, rows, columns in (
            ("attn_q", query_size, hidden),
            ("attn_k", kv_size, hidden),
            ("attn_v", kv_size, hidden),
            ("attn_output", hidden, query_size),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(f"{prefix}{part}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
