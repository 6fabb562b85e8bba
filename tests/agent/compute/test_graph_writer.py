from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.compute.graph_writer import CPU_FEATURES, GraphOptions, GraphWriter
from agent.compute.onnx_session import SessionSettings, open_session
from agent.compute.quantize import make_arrays
from planner.types import Quantization


def options(quantization: Quantization = "fp32") -> GraphOptions:
    return GraphOptions(quantization, 32, "fp16", capacity=8)


@pytest.mark.parametrize(("quantization", "bound"), [("fp32", 1e-6), ("int8", 0.01), ("int4", 0.15)])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_multiplies_by_the_stacked_weight(quantization: Quantization, bound: float, biased: bool) -> None:
    random = np.random.default_rng(0)
    tensors = {"a": random.standard_normal((6, 64), dtype=np.float32), "b": random.standard_normal((10, 64))}
    tensors |= {"a.bias": random.standard_normal(6), "b.bias": random.standard_normal(10)}
    writer = GraphWriter(options(quantization), 1e-5)
    writer.linear("x", "y", ["a", "b"], (16, 64), ["a.bias", "b.bias"] if biased else ())
    writer.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64]))
    writer.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16]))
    weights = (make_arrays(weight, tensors.__getitem__) for weight in writer.weights.values())
    x = random.standard_normal((3, 64), dtype=np.float32)
    y = open_session(writer.model("test"), SessionSettings(1), weights).run(None, {"x": x})[0]
    expected = x @ np.concatenate([tensors["a"], tensors["b"]]).T
    expected += np.concatenate([tensors["a.bias"], tensors["b.bias"]]) * biased
    assert np.linalg.norm(y - expected) <= bound * np.linalg.norm(expected)


def test_a_constant_is_written_once() -> None:
    writer = GraphWriter(options(), 1e-5)
    for _ in range(2):
        writer.constant("one", [1], TensorProto.INT64, (1,))
    assert len(writer.model("test").graph.initializer) == 1


def test_trailing_absent_inputs_are_dropped_and_inner_ones_kept() -> None:
    writer = GraphWriter(options(), 1e-5)
    writer.op("Resize", ["x", "", "scales", "", ""], ["y"])
    assert list(writer.nodes[0].input) == ["x", "", "scales"]


def test_only_int4_has_zero_points() -> None:
    assert [dataclasses.replace(options(), quantization=q).symmetric for q in ("int8", "int4")] == [True, False]
    assert options("int4").features is CPU_FEATURES
