from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from agent.compute.onnx_session import CUDA, SessionSettings, Spinning, open_session, shared_value
from agent.errors import ProviderUnavailable


def product() -> ModelProto:
    """`y = x @ w` with `w` declared and not given."""
    weight = TensorProto(name="w", dims=[4, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="attached")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("spinning", ["never", "within_runs", "always"])
def test_attached_weights_are_copied(spinning: Spinning) -> None:
    w, x = np.arange(16, dtype=np.float32).reshape(4, 4), np.ones((2, 4), np.float32)
    settings = SessionSettings(threads=2, spinning=spinning, spin_duration_us=50)
    session = open_session(product(), settings, [{"w": w}])
    expected = x @ w
    w[:] = 0
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_a_provider_this_build_lacks_is_named() -> None:
    with pytest.raises(ProviderUnavailable, match=r"CUDAExecutionProvider is not in this build.*CPUExecutionProvider"):
        open_session(product(), SessionSettings(1, (CUDA,)), [{"w": np.zeros((4, 4), np.float32)}])


def test_shared_values_lie_over_the_array() -> None:
    array = np.zeros(3, np.float32)
    value = shared_value(array, "cpu")
    array[1] = 5
    assert value.numpy()[1] == 5


def test_threads_are_checked() -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        SessionSettings(0)


def test_telemetry_is_off_before_the_runtime_is_imported() -> None:
    code = (
        "import builtins, os, sys; original = builtins.__import__\n"
        "def spy(name, *rest):\n"
        "    if name == 'onnxruntime': assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "    return original(name, *rest)\n"
        "builtins.__import__ = spy\n"
        "import agent.compute.onnx_executor; print('onnxruntime' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
