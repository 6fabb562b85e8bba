"""Networks as ONNX files: what may be written, and what the file then computes (held against NumPy)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from rl.dense import Dense
from rl.export import network_model, write_policy
from rl.policy_card import INPUT, OUTPUT, BadPolicy
from tests.fakes.small_policy import deeper_when_lossy, random_network, small_card


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_file_computes_what_the_layers_do(activation: str) -> None:
    layers = [
        replace(layer, activation=activation if layer.activation == "tanh" else "none")  # type: ignore[arg-type]
        for layer in random_network([2, 16, 8, 3], seed=5)
    ]
    model = network_model(layers, small_card())
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(6).normal(size=(7, 2)).astype(np.float32)
    expected = rows
    for layer in layers:
        expected = expected @ layer.weight.T + layer.bias
        if layer.activation != "none":
            expected = np.tanh(expected) if activation == "tanh" else np.maximum(expected, 0)
    np.testing.assert_allclose(session.run([OUTPUT], {INPUT: rows})[0], expected, rtol=1e-5, atol=1e-6)


def test_the_same_policy_gives_the_same_bytes() -> None:
    first, second = (network_model(random_network([2, 8, 3], 1), small_card()).SerializeToString() for _ in range(2))
    assert first == second


def linear(rows: int, columns: int) -> Dense:
    return Dense(np.zeros((rows, columns), np.float32), np.zeros(rows, np.float32), "none")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "last layer"),
        ([replace(linear(3, 2), activation="tanh")], "last layer"),
        ([linear(3, 5)], r"layer 0 is \(3, 5\), \(3, 2\) fits"),
        ([replace(linear(8, 2), activation="tanh"), linear(3, 9)], r"layer 1 is \(3, 9\), \(3, 8\) fits"),
        ([linear(4, 2)], "4 scores, its card has 3 moves"),
        ([replace(linear(3, 2), bias=np.full(3, np.inf, np.float32))], "training diverged"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers: list[Dense], said: str) -> None:
    with pytest.raises(BadPolicy, match=said):
        network_model(layers, small_card())


def test_nothing_is_written_of_a_policy_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadPolicy, match="splits is empty"):
        write_policy(tmp_path / "policy.onnx", deeper_when_lossy(), small_card(splits=()))
    assert list(tmp_path.iterdir()) == []
