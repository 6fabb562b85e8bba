"""The other contestants of bench_decode and peers: one process each, run by an interpreter that has them installed.

Imports nothing of ours. The first line it writes is its name and version. Then it reads orders from stdin, a number of
steps and of streams per line, and answers each with {"prompt_ms", "steps_ms"}: what the prompts took, and each step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf_model
import numpy as np

PROMPT_TOKENS = 64
RPC_SERVERS = 2
Step = Callable[[], None]
Start = Callable[[list[list[int]]], Step]
"""Forgets what was, takes prompts [stream][token], and gives back what makes one more token of each stream."""


def answer(name: str, start: Start) -> None:
    """Take orders until stdin closes."""
    print(json.dumps({"name": name}), flush=True)
    for line in sys.stdin:
        steps, streams = (int(word) for word in line.split())
        began_s = time.perf_counter()
        step = start(prompts(streams))
        prompt_ms = 1e3 * (time.perf_counter() - began_s)
        times = []
        for _ in range(steps):
            began_s = time.perf_counter()
            step()
            times.append((time.perf_counter() - began_s) * 1e3)
        print(json.dumps({"prompt_ms": prompt_ms, "steps_ms": times}), flush=True)


def prompts(streams: int) -> list[list[int]]:
    """A different prompt for each stream; shorter ones where there are several."""
    length = PROMPT_TOKENS if streams == 1 else PROMPT_TOKENS // 4
    return [[100 + 7 * stream + token for token in range(length)] for stream in range(streams)]


def genai(directory: Path, threads: int) -> None:
    import onnxruntime_genai

    del threads  # the model's own configuration has them
    model = onnxruntime_genai.Model(str(directory))

    def start(tokens: list[list[int]]) -> Step:
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=512, do_sample=False, batch_size=len(tokens))
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array(tokens, np.int32))
        generator.generate_next_token()
        step: Step = generator.generate_next_token
        return step

    answer(f"onnxruntime-genai {version('onnxruntime-genai')}", start)


def transformers(directory: Path, threads: int) -> None:
    """bf16: on a CPU it has no 4 bit kernels of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)

    def start(tokens: list[list[int]]) -> Step:
        output = model(input_ids=torch.tensor(tokens), use_cache=True, logits_to_keep=1)
        cache, last = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)

        def step() -> None:
            nonlocal last
            output = model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
            last = output.logits[:, -1].argmax(-1, keepdim=True)

        return step

    answer(f"transformers {version('transformers')} on torch {torch.__version__}, bf16", start)


def llama(path: Path, threads: int, streams: int, rpc: bool) -> None:
    from llama_contestant import Llama, servers

    with contextlib.ExitStack() as stack:
        endpoints = stack.enter_context(servers(RPC_SERVERS, threads)) if rpc else []
        model = Llama(path, threads, streams, endpoints)

        def start(tokens: list[list[int]]) -> Step:
            model.clear()
            last = np.concatenate([model.decode([row], 0, first=number).copy() for number, row in enumerate(tokens)])
            position = len(tokens[0])

            def step() -> None:
                nonlocal last, position
                last = model.decode(last.argmax(axis=1)[:, None].tolist(), position).copy()
                position += 1

            return step

        where = f"RPC, {RPC_SERVERS} servers" if rpc else "one process"
        answer(f"llama-cpp-python {version('llama-cpp-python')} Q4_0, {where}", start)


def llama_perplexity(checkpoint: Path, gguf: Path, windows: Sequence[Sequence[int]]) -> float:
    """Perplexity of the checkpoint in Q4_0 over `windows`, whose first tokens are not scored."""
    from llama_contestant import Llama

    gguf_model.write_checkpoint(gguf, checkpoint)
    model = Llama(gguf, 2, 1)
    total, count = 0.0, 0
    for window in windows:
        model.clear()
        logits = model.decode([window], 0, every=True)[:-1].astype(np.float64)
        highest = logits.max(axis=1)
        shift = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        total += float((shift - logits[np.arange(len(logits)), list(window[1:])]).sum())
        count += len(logits)
    return math.exp(total / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contestant", choices=["genai", "llama", "llama-rpc", "transformers", "llama-perplexity"])
    parser.add_argument("path", type=Path, help="the contestant's model")
    parser.add_argument("--shape", type=json.loads, default={}, help="to write a random gguf, where there is none")
    parser.add_argument("--checkpoint", type=Path, help="whose perplexity is asked; windows of tokens come on stdin")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=1, help="most of them")
    options = parser.parse_args()
    peers: dict[str, Callable[[], Any]] = {
        "genai": lambda: genai(options.path, options.threads),
        "transformers": lambda: transformers(options.path, options.threads),
        "llama": lambda: llama(options.path, options.threads, options.streams, rpc=False),
        "llama-rpc": lambda: llama(options.path, options.threads, options.streams, rpc=True),
        "llama-perplexity": lambda: print(llama_perplexity(options.checkpoint, options.path, json.load(sys.stdin))),
    }
    if options.shape and not options.path.exists():
        gguf_model.write_random(options.path, options.shape)
    peers[options.contestant]()


if __name__ == "__main__":
    main()
