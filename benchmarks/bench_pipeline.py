"""Milliseconds per token of three agents on this machine against the same executor in one process.

Both are loaded at the same time and run in turns, so a noisy machine hurts both alike. A round's figure is the time
from the first token's arrival to the last one's over the steps between; the table gives medians over the rounds.

    python benchmarks/bench_pipeline.py --out benchmarks/results/pipeline.json
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import random_model
from report import write_report

from agent.wire.messages import Sampling
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from edgectl.model_source import describe_model, locate_model
from edgectl.planning import ServingOptions
from edgectl.solo import load_solo

PROMPT = list(range(100, 132))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    parser.add_argument("--model", type=Path, help="a model directory instead of the random one")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--block-size", type=int, default=0, help="0: the default of edgectl serve")
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = options.model or random_model.write(options.models)
    if options.one_process:
        asyncio.run(one_process(model, options))
        return
    with tempfile.TemporaryDirectory() as directory, Processes(Path(directory)) as processes:
        rounds = measure(model, options, Path(directory), processes)
    report(model, options, rounds)


def measure(model: Path, options: argparse.Namespace, directory: Path, processes: Processes) -> dict[str, list[float]]:
    cluster = LocalCluster(directory, processes)
    names = [f"device-{number}" for number in range(options.agents)]
    for name in names:
        cluster.add_device(name, model.parent, {})
    serve = ["--quantize", options.quantize, "--context", str(options.context)]
    if options.block_size:
        serve += ["--block-size", str(options.block_size)]
    cluster.start_coordinator(model, serve)
    for name in names:
        cluster.start_device(name)
    cluster.wait_until_ready(600)
    alone = subprocess.Popen(
        [sys.executable, *sys.argv, "--one-process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert alone.stdin is not None
    assert alone.stdout is not None
    alone.stdout.readline()
    rounds: dict[str, list[float]] = {"one process": [], f"{options.agents} agents": []}
    for number in range(options.rounds + 1):
        alone.stdin.write("go\n")
        alone.stdin.flush()
        one_ms = float(alone.stdout.readline())
        agents_ms = agents_step_ms(cluster, model.name, options.tokens)
        if number:  # the first round warms up
            rounds["one process"].append(one_ms)
            rounds[f"{options.agents} agents"].append(agents_ms)
            print(f"round {number}: one process {one_ms:.2f} ms, agents {agents_ms:.2f} ms", file=sys.stderr)
    alone.stdin.close()
    alone.wait(30)
    return rounds


def agents_step_ms(cluster: LocalCluster, model: str, tokens: int) -> float:
    """Mean decode step of one completion, as its stream arrives over HTTP."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body["return_token_ids"] = True
    return mean_step_ms([time.perf_counter() for choice in cluster.stream(body) for _ in choice["token_ids"]])


def mean_step_ms(arrivals_s: list[float]) -> float:
    return 1e3 * (arrivals_s[-1] - arrivals_s[0]) / (len(arrivals_s) - 1)


async def one_process(model: Path, options: argparse.Namespace) -> None:
    """The same stage and executor in this process: a line in, one completion, its mean decode step in ms out."""
    located = locate_model(str(model))
    serving = ServingOptions(
        quantization=options.quantize,
        context=options.context,
        **({"block_size": options.block_size} if options.block_size else {}),
    )
    engine = load_solo(located, describe_model(located, lambda *_: None), serving, lambda *_: None)
    print("ready", flush=True)
    for _ in sys.stdin:
        session = await engine.open(PROMPT, options.tokens, Sampling(temperature=0.0), ())
        arrivals_s = [time.perf_counter() async for _token in session]
        print(mean_step_ms(arrivals_s), flush=True)


def report(model: Path, options: argparse.Namespace, rounds: dict[str, list[float]]) -> None:
    one, agents = rounds.values()
    ratio = statistics.median(a / b for a, b in zip(agents, one, strict=True))
    rows = [{"what": what, "ms_per_token": statistics.median(values)} for what, values in rounds.items()]
    write_report(
        "pipeline",
        rows,
        {"model": model.name, "quantize": options.quantize, "tokens": options.tokens, "ratio": ratio, "rounds": rounds},
        options.out,
    )


if __name__ == "__main__":
    main()
