"""Our logits against transformers in fp32: largest difference over largest logit, whole and cut at every boundary.

Prefill, a second chunk, decode steps: the schedule of tests/test_parity.py, whose models these are.

    python benchmarks/bench_parity.py --out benchmarks/results/parity.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import transformers
from report import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.compute.onnx_session import RUNTIME_VERSION
from planner.types import BoundaryType, Quantization
from tests.fakes.random_models import BOUND, CONFIGS, SIZES, TOKENS, WIKI, Chain, ratio, reference_logits, save_random


def edges(layers: int) -> Iterator[tuple[int, ...]]:
    """The whole model, then two ranges for every place to cut it."""
    yield (0, layers)
    for cut in range(1, layers):
        yield (0, cut, layers)


def worst(path: Path, layers: int, boundary: BoundaryType) -> float:
    """The largest ratio over all ways to cut."""
    tokens = np.random.default_rng(0).integers(2, SIZES["vocab_size"], TOKENS)
    reference = reference_logits(path, tokens)
    ratios = []
    for places in edges(layers):
        with Chain(path, places, boundary=boundary) as chain:
            ratios.append(ratio(chain.schedule(tokens), reference))
    return max(ratios)


def blocks_are_equal(quantization: Quantization) -> bool:
    """Whether wiki-32l in 1, 2, 3 and 32 blocks gives the same bits with an fp16 boundary."""
    tokens = np.random.default_rng(0).integers(2, SIZES["vocab_size"], TOKENS)
    logits = []
    for cuts in ((), (16,), (10, 21), tuple(range(32))):
        with Chain(WIKI, (0, 32), quantization=quantization, cuts=cuts) as chain:
            logits.append(chain.schedule(tokens))
    return all(np.array_equal(other, logits[0]) for other in logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as directory:
        for name in (*CONFIGS, "wiki-32l"):
            path = WIKI if name == "wiki-32l" else Path(directory) / name
            if path != WIKI:
                save_random(name, "fp32", path)
            layers = 32 if path == WIKI else SIZES["num_hidden_layers"]
            row: dict[str, object] = {"model": name}
            for boundary, bound in BOUND.items():
                row[f"boundary {boundary}"] = worst(path, layers, boundary)
                row[f"target {boundary}"] = bound
            rows.append(row)
    equal = {quantization: blocks_are_equal(quantization) for quantization in ("fp32", "int8", "int4")}
    facts = {f"1, 2, 3 and 32 blocks bit-equal, {name}": value for name, value in equal.items()}
    write_report("parity", rows, {"onnxruntime": RUNTIME_VERSION, **facts}, options.out)


if __name__ == "__main__":
    main()
