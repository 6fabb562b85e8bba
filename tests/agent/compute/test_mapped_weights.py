from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from agent.compute.graph_writer import GraphOptions
from agent.compute.layer_file import LEAST_MAPPED_BYTES
from agent.compute.layer_graph import build_block
from agent.compute.layer_store import LayerStore
from agent.compute.mapped_weights import refer_to_files
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import SessionSettings
from agent.compute.part import PartKey, parts_of
from agent.compute.weights import StoredWeights, Weights
from planner.types import LayerRange, Quantization
from tests.fakes.random_weights import SMALL, RandomWeights

LARGE = dataclasses.replace(
    SMALL, num_layers=2, hidden_size=512, intermediate_size=2304, num_heads=8, head_dim=64, sliding_windows=(None,) * 2
)
"""Its largest matrices are mapped, its other ones copied."""

ALL = LayerRange(0, 2)


def stored(root: Path, quantization: Quantization) -> StoredWeights:
    key = PartKey("0" * 64, quantization, 32, "fp32")
    return StoredWeights(RandomWeights(LARGE), key, LayerStore(root, 1 << 30), parts_of([ALL], 2))


def outputs(weights: Weights, quantization: Quantization) -> list[bytes]:
    """Of a prompt and of a step after it."""
    settings = ExecutorSettings(
        resident=(ALL,), slots=1, context=16, quantization=quantization, block_size=32, session=SessionSettings(1)
    )
    executor = OnnxExecutor.load(weights, settings)
    random = np.random.default_rng(3)
    found = []
    for position, tokens in ((0, 5), (5, 1)):
        hidden = random.standard_normal((1, tokens, LARGE.hidden_size)).astype(np.float32)
        found.append(executor.forward(ALL, hidden, 0, [position]).tobytes())
    executor.close()
    return found


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_layers_from_files_compute_the_same_bits(tmp_path: Path, quantization: Quantization) -> None:
    expected = outputs(RandomWeights(LARGE), quantization)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store").mkdir()
    for _ in ("written", "found", "found"):
        assert outputs(stored(link, quantization), quantization) == expected


def test_large_matrices_are_named_by_place_and_the_rest_handed_over(tmp_path: Path) -> None:
    weights = stored(tmp_path, "int4")
    graph = build_block(LARGE, ALL, GraphOptions("int4", 32, "fp16", 17))
    before = graph.model.SerializeToString()
    model, copied, directory = refer_to_files(graph.model, [weights.arrays(weight) for weight in graph.weights])
    assert graph.model.SerializeToString() == before
    placed = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in copied:
            placed[tensor.name] = {entry.key: entry.value for entry in tensor.external_data}
    assert set(placed) == {"0.gate_up.weight.q", "1.gate_up.weight.q"}
    assert directory is not None
    for name, place in placed.items():
        with (directory / place["location"]).open("rb") as file:
            file.seek(int(place["offset"]))
            data = file.read(int(place["length"]))
        weight = next(weight for weight in graph.weights if f"{weight.name}.q" == name)
        assert len(data) >= LEAST_MAPPED_BYTES
        assert data == RandomWeights(LARGE).arrays(weight)[name].tobytes()


def test_weights_in_memory_stay_as_they_are() -> None:
    graph = build_block(LARGE, ALL, GraphOptions("int4", 32, "fp16", 17))
    arrays = [RandomWeights(LARGE).arrays(weight) for weight in graph.weights]
    model, copied, directory = refer_to_files(graph.model, arrays)
    assert directory is None
    assert model.SerializeToString() == graph.model.SerializeToString()
    assert copied.keys() == {name for part in arrays for name in part}
