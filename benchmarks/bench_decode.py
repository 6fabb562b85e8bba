"""Decode speed of our executor in one process against onnxruntime-genai and llama.cpp, with head, in one run.

A Llama of 22 layers of 2048/5632 (TinyLlama's shape) with random int4 weights and 2 threads. Contestants are processes
that take turns for a few tokens; a ratio is taken within a turn, so what slows the machine slows them all.

    python benchmarks/bench_decode.py --peers-python peers/bin/python --out benchmarks/results/decode.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import random_model
from decode_peers import Step, answer
from genai_model import CONTEXT, write_genai_model
from report import write_report

from agent.compute.checkpoint import Checkpoint
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import RUNTIME_VERSION, SessionSettings
from planner.model_spec import ModelSpec
from planner.types import LayerRange

TARGETS = {"genai": 0.95, "llama": 1.0}
WARM_STEPS = 2


def serve_ours(model: Path, block_size: int, threads: int) -> None:
    """Our contestant, in this process: shipped defaults."""
    checkpoint = Checkpoint.open(model)
    layers = LayerRange(0, checkpoint.spec.num_layers)
    settings = ExecutorSettings(
        (layers,), slots=1, context=CONTEXT - 1, block_size=block_size, session=SessionSettings(threads)
    )
    executor = OnnxExecutor.load(checkpoint, settings)

    def start(prompts: list[list[int]]) -> Step:
        (prompt,) = prompts
        hidden = executor.forward(layers, executor.embed(np.array([prompt])), 0, [0])
        token, position = int(executor.logits(hidden[:, -1]).argmax()), len(prompt)

        def step() -> None:
            nonlocal token, position
            hidden = executor.forward(layers, executor.embed(np.array([[token]])), 0, [position])
            token = int(executor.logits(hidden[:, 0]).argmax())
            position += 1

        return step

    answer(f"edgectl on onnxruntime {RUNTIME_VERSION}", start)


class Contestant:
    """A process that steps when told."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.prompt_ms = math.nan
        """What the prompts of the last order took."""
        self.name = str(json.loads(_stream(self.process.stdout).readline() or '{"name": ""}')["name"])

    def steps(self, count: int, streams: int = 1) -> list[float]:
        """Milliseconds of each of `count` steps after a prompt, a token for each of `streams`."""
        requests = _stream(self.process.stdin)
        requests.write(f"{count} {streams}\n")
        requests.flush()
        answered = json.loads(_stream(self.process.stdout).readline())
        self.prompt_ms = float(answered["prompt_ms"])
        times: list[float] = answered["steps_ms"]
        return times

    def close(self) -> None:
        _stream(self.process.stdin).close()
        self.process.wait(timeout=30)


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def compare(contestants: dict[str, Contestant], rounds: int, steps: int) -> list[dict[str, object]]:
    """Medians over all rounds, and the median over rounds of each one's time over ours: our speed over its."""
    medians: dict[str, list[float]] = {key: [] for key in contestants}
    for turn in range(rounds):
        order = list(contestants)
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            medians[key].append(statistics.median(contestants[key].steps(WARM_STEPS + steps)[WARM_STEPS:]))
    rows: list[dict[str, object]] = []
    for key, values in medians.items():
        ratios = [theirs / ours for theirs, ours in zip(values, medians["ours"], strict=True)]
        rows.append(
            {
                "contestant": contestants[key].name,
                "ms_per_token": statistics.median(values),
                "best_ms": min(values),
                "tokens_per_s": 1e3 / statistics.median(values),
                "our_speed_over_it": statistics.median(ratios),
                "target": TARGETS.get(key, ""),
            }
        )
    return rows


def start_all(options: argparse.Namespace, model: Path, directory: Path) -> dict[str, Contestant]:
    common = ["--threads", str(options.threads)]
    ours = [sys.executable, __file__, "--serve", str(model), "--block-size", str(options.block_size)]
    contestants = {"ours": Contestant([*ours, *common])}
    if options.peers_python is None:
        return contestants
    spec: ModelSpec = Checkpoint.open(model).spec
    write_genai_model(directory, spec, options.block_size, options.threads)
    shape = {name: value for name, value in asdict(spec).items() if isinstance(value, int)}
    peers = str(Path(__file__).with_name("decode_peers.py"))
    for key, path in (("genai", directory), ("llama", directory / "model.gguf")):
        contestant = Contestant([options.peers_python, peers, key, str(path), "--shape", json.dumps(shape), *common])
        if contestant.name:
            contestants[key] = contestant
        else:
            print(f"{key}: did not start, left out", file=sys.stderr)
    return contestants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    parser.add_argument("--peers-python", help="interpreter with onnxruntime-genai, llama-cpp-python and gguf")
    parser.add_argument("--layers", type=int, help="fewer than the model's 22, to try things out")
    parser.add_argument("--block-size", type=int, default=128, help="int4 block of ours and of genai; Q4_0 has 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_ours(options.serve, options.block_size, options.threads)
        return
    model = random_model.write(options.models, layers=options.layers)
    with tempfile.TemporaryDirectory() as directory:
        contestants = start_all(options, model, Path(directory))
        rows = compare(contestants, options.rounds, options.steps)
        for contestant in contestants.values():
            contestant.close()
    facts = {name: getattr(options, name) for name in ("block_size", "threads", "rounds", "steps")}
    write_report("decode", rows, facts, options.out)


if __name__ == "__main__":
    main()
