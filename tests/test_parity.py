"""Our logits against transformers in fp32: the Llama family, whole and cut, in chunks, step by step, rewound.

Bounds are those of the issue: largest difference over largest logit ≤ 1e-4 with fp32 boundaries, ≤ 2e-3 with fp16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.types import BoundaryType, LayerRange, Quantization
from tests.fakes.random_models import (
    BOUND,
    CONFIGS,
    DTYPES,
    SIZES,
    TOKENS,
    WIKI,
    Chain,
    ratio,
    reference_logits,
    save_random,
)

ROOT = Path(__file__).parents[1]


EACH = tuple(range(32))
"""Cuts that make every layer of wiki-32l a block."""


@pytest.fixture(scope="module")
def tokens() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(2, SIZES["vocab_size"], TOKENS)


@pytest.fixture(scope="module")
def wiki_reference(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    return reference_logits(WIKI, tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_family_whole_and_cut_at_every_boundary(
    name: str, dtype: str, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    save_random(name, dtype, tmp_path)
    reference = reference_logits(tmp_path, tokens)
    layers = SIZES["num_hidden_layers"]
    for boundary, bound in BOUND.items():
        for edges in ((0, layers), *((0, cut, layers) for cut in range(1, layers))):
            with Chain(tmp_path, edges, boundary=boundary) as chain:
                assert ratio(chain.schedule(tokens), reference) <= bound, (boundary, edges)
                again = chain.run(tokens[None, 12:14], 1, [12])[0]
                assert ratio(again, reference[12:14]) <= bound, (boundary, edges, "rewound")


@pytest.mark.parametrize("boundary", BOUND)
def test_wiki_cut_at_every_boundary(
    boundary: BoundaryType, tokens: NDArray[np.int64], wiki_reference: NDArray[np.float32]
) -> None:
    with Chain(WIKI, (0, 32), boundary=boundary, cuts=EACH) as chain:
        executor = chain.executors[0]
        assert ratio(chain.schedule(tokens), wiki_reference) <= BOUND[boundary]
        for cut in range(1, 32):
            hidden = executor.forward(LayerRange(0, cut), executor.embed(tokens[None]), 0, [0]).copy()
            logits = executor.logits(executor.forward(LayerRange(cut, 32), hidden, 0, [0])[0])
            assert ratio(logits, wiki_reference) <= BOUND[boundary], cut


@pytest.mark.parametrize("quantization", ["fp32", "int8", "int4"])
def test_wiki_in_1_2_3_and_32_blocks_is_bit_equal(quantization: Quantization, tokens: NDArray[np.int64]) -> None:
    """Also what shows that ONNX Runtime's optimiser keeps the rounding between the layers of a block."""
    with Chain(WIKI, (0, 32), quantization=quantization, cuts=EACH) as chain:
        expected = chain.schedule(tokens)
    for cuts in ((), (16,), (10, 21)):
        with Chain(WIKI, (0, 32), quantization=quantization, cuts=cuts) as chain:
            np.testing.assert_array_equal(chain.schedule(tokens), expected)


@pytest.mark.parametrize("boundary", ["bf16", "fp32"])
def test_other_boundary_types_do_not_depend_on_blocks_either(boundary: BoundaryType, tokens: NDArray[np.int64]) -> None:
    with Chain(WIKI, (0, 32), boundary=boundary, cuts=EACH) as chain:
        expected = chain.schedule(tokens)
    with Chain(WIKI, (0, 5, 32), boundary=boundary, cuts=()) as chain:
        np.testing.assert_array_equal(chain.schedule(tokens), expected)


def test_three_devices_are_bit_equal_to_one(tokens: NDArray[np.int64]) -> None:
    with Chain(WIKI, (0, 32), quantization="int4") as one, Chain(WIKI, (0, 9, 20, 32), quantization="int4") as three:
        np.testing.assert_array_equal(three.schedule(tokens), one.schedule(tokens))


@pytest.mark.parametrize("quantization", ["fp32", "int8", "int4"])
def test_rows_of_a_ragged_batch_are_bit_equal_to_rows_alone(
    quantization: Quantization, tokens: NDArray[np.int64]
) -> None:
    lengths = [3, 11, 2, 17]
    steps = tokens[:12].reshape(3, 4, 1)
    with Chain(WIKI, (0, 32), quantization=quantization, slots=5) as chain:
        for row, length in enumerate(lengths):
            chain.run(tokens[None, :length], 1 + row, [0])
        batched = [chain.run(ids, 1, [length + step for length in lengths]) for step, ids in enumerate(steps)]
        for row, length in enumerate(lengths):
            alone = [chain.run(ids[row : row + 1], 1 + row, [length + step]) for step, ids in enumerate(steps)]
            np.testing.assert_array_equal(np.concatenate(alone), np.stack([logits[row] for logits in batched]))


@pytest.mark.parametrize("quantization", ["fp32", "int8", "int4"])
def test_chunks_of_any_size_above_one_are_bit_equal(quantization: Quantization, tokens: NDArray[np.int64]) -> None:
    with Chain(WIKI, (0, 32), quantization=quantization) as chain:
        whole = chain.run(tokens[None], 0, [0])[0]
        for size in (2, 3, 8, 22):
            parts = [chain.run(tokens[None, start : start + size], 1, [start])[0] for start in range(0, TOKENS, size)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.skipif(
    "EDGE_OLD_RUNTIME" not in os.environ,
    reason="EDGE_OLD_RUNTIME does not name a directory with onnxruntime 1.23.2 (make test makes it)",
)
@pytest.mark.timeout(300)
def test_passes_on_the_oldest_supported_onnx_runtime() -> None:
    """This file once more with another ONNX Runtime before ours on the path; JetPack 6 goes no further than 1.23.2."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EDGE_OLD", "PYTEST"))}
    path = os.pathsep.join([os.environ["EDGE_OLD_RUNTIME"], str(ROOT)])
    check = "import onnxruntime, sys; sys.exit(onnxruntime.__version__ != '1.23.2')"
    subprocess.run([sys.executable, "-c", check], env=environment | {"PYTHONPATH": path}, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=environment | {"PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
