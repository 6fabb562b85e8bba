"""Tokens per second of two agents against llama.cpp (also over RPC), onnxruntime-genai and transformers, in one run.

A Llama of 22 layers of 2048/5632 with random weights. Ours are real agents, each with half of the layers, behind the
coordinator's HTTP; llama.cpp's RPC has two servers with half of the layers each and as many threads as an agent. The
others are one process with the threads of both. All are loaded at the same time and take turns: a ratio is taken within
a turn and the table has the median. A turn is a prompt per stream, which is not timed, and then steps.

    python benchmarks/peers.py --peers-python peers/bin/python --text wiki.test.txt --out benchmarks/results/peers.json
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import random_model
from bench_decode import Contestant
from decode_peers import prompts
from genai_model import write_genai_model
from report import write_report

from agent.compute.checkpoint import Checkpoint
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import SessionSettings
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from planner.memory import layer_weight_bytes
from planner.model_spec import ModelSpec
from planner.types import LayerRange, Quantization

BLOCK_SIZES = (32, 128)
TARGETS = {(32, 1): 0.95, (128, 1): 1.1, (32, 8): 1.0, (128, 8): 1.0}
"""Our speed over llama.cpp's RPC by (block size, streams)."""
CONTEXT = 512
WARM_STEPS = 3
AGENTS = 2
WINDOW = 256
LATE_STEPS = 40
"""How many steps a stream may be ahead of the last one when that has its first token."""


class Peer(Protocol):
    """Whoever takes turns."""

    name: str

    def steps(self, count: int, streams: int = 1) -> list[float]: ...


class Agents:
    """Two agents with half of the layers each, as a contestant."""

    def __init__(self, model: Path, directory: Path, processes: Processes, block_size: int, options: Any) -> None:
        self.name = f"edgectl int4 block {block_size}, {AGENTS} agents"
        self._model = model.name
        directory.mkdir()
        self._cluster = LocalCluster(directory, processes)
        for number in range(AGENTS):
            # Quantized layers are kept for the next run.
            cache = str(options.models / "layer-cache")
            settings: dict[str, str | int | bool] = {"threads": options.threads, "cache_dir": cache}
            self._cluster.add_device(f"device-{number}", model.parent, settings)
        serve = ["--quantize", "int4", "--block-size", str(block_size), "--context", str(CONTEXT)]
        serve += ["--sessions", str(options.streams)]
        # Every cluster of a run has processes of the same names.
        self._cluster.start_coordinator(model, serve)
        for number in range(AGENTS):
            self._cluster.start_device(f"device-{number}")
        self._cluster.wait_until_ready(600)

    def steps(self, count: int, streams: int = 1) -> list[float]:
        """The mean step over all streams, while all of them were decoding; `count` steps of it at least."""
        arrivals_s: list[list[float]] = [[] for _ in range(streams)]
        length = count + (LATE_STEPS if streams > 1 else 0)

        def read(number: int, prompt: list[int]) -> None:
            body = {"model": self._model, "prompt": prompt, "max_tokens": length, "temperature": 0}
            body |= {"ignore_eos": True, "return_token_ids": True}
            for choice in self._cluster.stream(body):
                arrivals_s[number] += [time.perf_counter()] * len(choice["token_ids"])

        readers = [threading.Thread(target=read, args=each) for each in enumerate(prompts(streams))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        if any(len(one) < length for one in arrivals_s):
            raise RuntimeError(f"{self.name}: a stream broke off\n\n{self._cluster.processes.logs()}")
        start_s, end_s = max(one[WARM_STEPS - 1] for one in arrivals_s), min(one[-1] for one in arrivals_s)
        made = sum(start_s < arrived_s <= end_s for one in arrivals_s for arrived_s in one)
        if made < streams:
            raise RuntimeError(f"{self.name}: the first of {streams} streams ended before the last one began")
        return [1e3 * (end_s - start_s) * streams / made] * count


def compare(peers: dict[str, Peer], options: argparse.Namespace) -> list[dict[str, object]]:
    """A row per contestant: medians over the rounds of its mean step, and of each of ours over it."""
    threads, streams, steps = options.threads, options.streams, options.steps
    means: dict[str, list[float]] = {key: [] for key in peers}
    for turn in range(options.rounds):
        order = list(peers)
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            times = peers[key].steps(WARM_STEPS + steps, streams)[WARM_STEPS:]
            means[key].append(statistics.mean(times))
    rows = []
    for key, values in means.items():
        row: dict[str, object] = {"threads": threads, "streams": streams, "contestant": peers[key].name}
        row |= {"ms_per_step": statistics.median(values), "best_ms": min(values)}
        row["rounds"] = options.rounds
        row["tokens_per_s"] = 1e3 * streams / statistics.median(values)
        for block_size in BLOCK_SIZES:
            ours = means[f"ours-{block_size}"]
            row[f"block_{block_size}_over_it"] = statistics.median(a / b for a, b in zip(values, ours, strict=True))
            row[f"target_{block_size}"] = TARGETS.get((block_size, streams)) if key == "llama-rpc" else None
        rows.append(row)
    return rows


def start_all(options: argparse.Namespace, model: Path, directory: Path, stack: ExitStack) -> dict[str, Peer]:
    peers: dict[str, Peer] = {}
    for block_size in BLOCK_SIZES:
        below = directory / f"ours-{block_size}"
        logs = directory / f"logs-{block_size}"
        logs.mkdir()
        processes = stack.enter_context(Processes(logs))
        peers[f"ours-{block_size}"] = Agents(model, below, processes, block_size, options)
    spec = Checkpoint.open(model).spec
    common = ["--streams", str(options.streams)]
    all_threads, each = str(AGENTS * options.threads), str(options.threads)
    script = str(Path(__file__).with_name("decode_peers.py"))
    commands: dict[str, list[str]] = {}
    if options.peers_python:
        gguf, genai = options.models / f"{model.name}.gguf", directory / "genai"
        genai.mkdir()
        write_genai_model(genai, spec, max(BLOCK_SIZES), AGENTS * options.threads)
        shape = json.dumps({name: value for name, value in asdict(spec).items() if isinstance(value, int)})
        for key, path, threads in (
            ("llama-rpc", gguf, each),
            ("llama", gguf, all_threads),
            ("genai", genai, all_threads),
        ):
            commands[key] = [options.peers_python, script, key, str(path), "--shape", shape, "--threads", threads]
    commands["transformers"] = [sys.executable, script, "transformers", str(model), "--threads", all_threads]
    for key, command in commands.items():
        if key in options.skip:
            continue
        contestant = Contestant([*command, *common])
        if contestant.name:
            stack.callback(contestant.close)
            peers[key] = contestant
        else:
            print(f"{key}: did not start, left out", file=sys.stderr)
    return peers


def bits_per_weight(spec: ModelSpec, quantization: Quantization, block_size: int) -> float:
    """What the planner counts for a layer, as ONNX Runtime keeps it in memory."""
    elements = layer_weight_bytes(spec, "fp32", block_size) / 4
    return 8 * layer_weight_bytes(spec, quantization, block_size) / elements


def perplexities(options: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    """wiki-32l over consecutive windows, the first token of each not scored."""
    from tokenizers import Tokenizer

    text = options.text.read_text(encoding="utf-8")
    tokens = Tokenizer.from_file(str(random_model.BUNDLED / "tokenizer.json")).encode(text).ids[: options.text_tokens]
    windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    spec = Checkpoint.open(random_model.BUNDLED).spec
    rows: list[dict[str, object]] = []
    cases: list[tuple[Quantization, int]] = [("fp32", 32), *(("int4", block_size) for block_size in BLOCK_SIZES)]
    for quantization, block_size in cases:
        row: dict[str, object] = {
            "weights": f"edgectl {quantization}" + f" block {block_size}" * (quantization != "fp32")
        }
        row |= {"bits_per_weight": bits_per_weight(spec, quantization, block_size)}
        row["perplexity"] = our_perplexity(windows, quantization, block_size)
        rows.append(row)
    if options.peers_python:
        script = str(Path(__file__).with_name("decode_peers.py"))
        command = [options.peers_python, script, "llama-perplexity", str(directory / "wiki.gguf")]
        command += ["--checkpoint", str(random_model.BUNDLED)]
        done = subprocess.run(command, input=json.dumps(windows), capture_output=True, text=True, check=True)
        rows.append({"weights": "llama.cpp Q4_0", "bits_per_weight": 4.5, "perplexity": float(done.stdout)})
    return rows


def our_perplexity(windows: list[list[int]], quantization: Quantization, block_size: int) -> float:
    checkpoint = Checkpoint.open(random_model.BUNDLED)
    layers = LayerRange(0, checkpoint.spec.num_layers)
    settings = ExecutorSettings((layers,), 1, WINDOW, quantization, block_size, session=SessionSettings(2))
    executor = OnnxExecutor.load(checkpoint, settings)
    total, count = 0.0, 0
    for window in windows:
        hidden = executor.forward(layers, executor.embed(np.array([window])), 0, [0])
        logits = executor.logits(hidden[0, :-1]).astype(np.float64)
        highest = logits.max(axis=1)
        shift = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        total += float((shift - logits[np.arange(len(logits)), window[1:]]).sum())
        count += len(logits)
    return float(np.exp(total / count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    parser.add_argument("--peers-python", help="interpreter with onnxruntime-genai, llama-cpp-python and gguf")
    parser.add_argument("--layers", type=int, help="fewer than the model's 22, to try things out")
    parser.add_argument("--threads", type=int, default=1, help="of each agent and of each RPC server")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--skip", type=lambda text: text.split(","), default=[])
    parser.add_argument("--rounds", type=int, default=9, help="0: perplexities only, with --append")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--text", type=Path, help="WikiText-2 test, for perplexities")
    parser.add_argument("--text-tokens", type=int, default=16_384)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows that are in --out")
    options = parser.parse_args()
    # A caller's time limit must not leave agents behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    model = random_model.write(options.models, layers=options.layers)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        quality = perplexities(options, directory) if options.text else []
        rows = compare(start_all(options, model, directory, stack), options) if options.rounds else []
    spec = Checkpoint.open(model).spec
    bits = {f"edgectl int4 block {size}": bits_per_weight(spec, "int4", size) for size in BLOCK_SIZES}
    facts: dict[str, object] = {}
    if options.append and options.out.exists():
        kept = json.loads(options.out.read_text())
        rows, quality = kept["rows"] + rows, quality or kept["perplexity_wiki_32l"]
    facts |= {"bits_per_weight": {**bits, "llama.cpp Q4_0": 4.5}, "perplexity_wiki_32l": quality}
    write_report("peers", rows, facts, options.out)
    for row in quality:
        print(row)


if __name__ == "__main__":
    main()
