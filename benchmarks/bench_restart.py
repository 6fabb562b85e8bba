"""Restart of a device from its cache of quantized layers: how long until every weight is packed, pages cold and warm.

A Llama of 22 layers of 2048/5632 (TinyLlama's shape) in int4, all of it on one device with two threads. Every round is
a new process that has imported everything: it puts the parts out of the page cache, reads them in order, puts them out
again and loads them. The target is a ratio of the two within a round, so what slows the machine slows both.

    chrt -r 5 python benchmarks/bench_restart.py --out benchmarks/results/restart.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import random_model
from report import write_report

from agent.compute.checkpoint import Checkpoint
from agent.compute.layer_store import LayerStore
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import RUNTIME_VERSION, SessionSettings
from agent.compute.part import PartKey, parts_of
from agent.compute.weights import StoredWeights, Weights
from planner.types import LayerRange

TARGET = 0.7
BLOCK_SIZE = 128
READ_BYTES = 1 << 20
"""What a plain copy reads at once; larger pieces were slower here, as they leave the processor's cache."""

KEY = PartKey("0" * 64, "int4", BLOCK_SIZE, "fp32")


def load(model: Path, cache: Path | None) -> tuple[float, int]:
    """Seconds until all layers and the head are packed, and bytes of memory that are this process's own after it."""
    checkpoint = Checkpoint.open(model)
    everything = LayerRange(0, checkpoint.spec.num_layers)
    began = time.perf_counter()
    weights: Weights = checkpoint
    if cache is not None:
        store = LayerStore(cache, 1 << 40)
        weights = StoredWeights(checkpoint, KEY, store, parts_of([everything], everything.stop))
    settings = ExecutorSettings(
        resident=(everything,), slots=1, context=256, block_size=BLOCK_SIZE, session=SessionSettings(threads=2)
    )
    executor = OnnxExecutor.load(weights, settings)
    took_s = time.perf_counter() - began
    own_bytes = _status_bytes("RssAnon")
    executor.close()
    return took_s, own_bytes


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def parts(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*/*.safetensors"))


def read(cache: Path) -> float:
    """Seconds for reading all parts in order."""
    buffer = bytearray(READ_BYTES)
    began = time.perf_counter()
    for path in parts(cache):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def put_out(cache: Path) -> None:
    """Out of the page cache with the parts: they are on the disk, so the kernel lets go of them at once."""
    for path in parts(cache):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_round(model: Path, cache: Path, kind: str) -> dict[str, float]:
    """What a process of its own measures."""
    if kind == "checkpoint":
        took_s, own_bytes = load(model, None)
        return {"load_s": took_s, "own_bytes": own_bytes}
    put_out(cache)
    read_s = read(cache)
    if kind == "cold":
        put_out(cache)
    took_s, own_bytes = load(model, cache)
    return {"read_s": read_s, "load_s": took_s, "own_bytes": own_bytes}


def measure(model: Path, cache: Path, kind: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--model", str(model), "--cache", str(cache), "--round", kind]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def summary(kind: str, size_bytes: int, found: Sequence[dict[str, float]]) -> dict[str, object]:
    load_s = statistics.median(one["load_s"] for one in found)
    own_mib = statistics.median(one["own_bytes"] for one in found) / 2**20
    row: dict[str, object] = {"pages": kind, "load_s": round(load_s, 3), "load_gb_per_s": size_bytes / load_s / 1e9}
    if "read_s" not in found[0]:
        return {**row, "read_s": "", "of_sequential_read": "", "best": "", "own_mib": own_mib}
    ratios = [one["read_s"] / one["load_s"] for one in found]
    read_s = statistics.median(one["read_s"] for one in found)
    ratio = {"of_sequential_read": statistics.median(ratios), "best": max(ratios)}
    return {**row, "read_s": round(read_s, 3), **ratio, "own_mib": own_mib}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cache", type=Path, help="keep the parts here, on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoint-rounds", type=int, default=1, help="loads without a cache; each quantizes it all")
    parser.add_argument("--round", choices=("cold", "warm", "checkpoint"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.round:
        print(json.dumps(one_round(options.model, options.cache, options.round)))
        return
    models = Path(tempfile.gettempdir()) / "edgectl-bench-models"
    model = options.model or random_model.write(models)
    cache = options.cache or models / "restart-cache"
    is_new = not parts(cache)
    first_s = load(model, cache)[0]  # whatever is missing is made and written
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(options.rounds):
        for kind, rounds in found.items():
            rounds.append(measure(model, cache, kind))
    if options.checkpoint_rounds:
        found["no cache"] = [measure(model, cache, "checkpoint") for _ in range(options.checkpoint_rounds)]
    size_bytes = sum(path.stat().st_size for path in parts(cache))
    rows = [summary(kind, size_bytes, rounds) for kind, rounds in found.items()]
    facts = {
        "target_of_sequential_read": TARGET,
        "bytes": size_bytes,
        "onnxruntime": RUNTIME_VERSION,
        "first_load_that_writes_s": first_s if is_new else None,
        "rounds": found,
    }
    write_report("restart", rows, facts, options.out)


if __name__ == "__main__":
    main()
