"""The other contestants of bench_decode: one process each, run by an interpreter that has them installed.

Imports nothing of ours. Reads a number of steps per line from stdin and answers with a JSON list of milliseconds; the
first line it writes is its name and version.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

PROMPT_TOKENS = 64


def answer(name: str, step: Callable[[], None]) -> None:
    """Take orders until stdin closes."""
    print(json.dumps({"name": name}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)


def genai(directory: Path) -> None:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(directory))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=512, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.arange(PROMPT_TOKENS, dtype=np.int32))
    generator.generate_next_token()
    answer(f"onnxruntime-genai {version('onnxruntime-genai')}", generator.generate_next_token)


def llama(path: Path, shape: dict[str, int], threads: int) -> None:
    import llama_cpp

    if not path.exists():
        write_gguf(path, shape)
    # Loading prints a page; a callback that outlives the load keeps it quiet.
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, threads, threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = shape["vocab_size"]

    def decode(tokens: list[int]) -> int:
        # The batch points into this array: it must live until the decode is done.
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        code = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {len(tokens)} tokens")
        return int(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (vocabulary,)).argmax())

    last = decode(list(range(PROMPT_TOKENS)))

    def step() -> None:
        nonlocal last
        last = decode([last])

    answer(f"llama-cpp-python {version('llama-cpp-python')} Q4_0", step)


def write_gguf(path: Path, shape: dict[str, int]) -> None:
    """A Llama of random Q4_0 weights, output matrix included, without a tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv_size = shape["num_kv_heads"] * shape["head_dim"]
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
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks: Any = random.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
        blocks[:, :, :2] = np.array([0.005], np.float16).view(np.uint8)  # the scale of each block of 32
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    matrix("token_embd.weight", vocabulary, hidden)
    matrix("output.weight", vocabulary, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(shape["num_layers"]):
        prefix = f"blk.{layer}."
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{prefix}{part}.weight", np.ones(hidden, np.float32))
        for part, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", kv_size, hidden),
            ("attn_v", kv_size, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(f"{prefix}{part}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=["genai", "llama"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--shape", type=json.loads, default={})
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.contestant == "genai":
        genai(arguments.path)
    else:
        llama(arguments.path, arguments.shape, arguments.threads)


if __name__ == "__main__":
    main()
