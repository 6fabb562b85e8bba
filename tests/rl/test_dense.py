"""Layers in NumPy, held against torch, and their way through JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from rl.dense import as_lists, forward, from_lists
from tests.fakes.small_policy import random_network


def test_it_computes_what_torch_does() -> None:
    layers = random_network([3, 16, 8, 2], seed=1)
    modules: list[Any] = []
    for layer in layers:
        linear = torch.nn.Linear(*reversed(layer.weight.shape))
        linear.weight.data, linear.bias.data = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
        modules += [linear, torch.nn.Tanh()] if layer.activation == "tanh" else [linear]
    rows = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch.nn.Sequential(*modules)(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(forward(layers, rows), expected, rtol=1e-4, atol=1e-5)


def test_round_trip() -> None:
    layers = random_network([3, 4, 2], seed=1)
    again = from_lists(json.loads(json.dumps(as_lists(layers))), 3)
    rows = np.ones((1, 3))
    np.testing.assert_array_equal(forward(again, rows), forward(from_lists(as_lists(layers), 3), rows))
    np.testing.assert_allclose(forward(again, rows), forward(layers, rows), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": [[1.0]]}, r"layers\[1\]: weight \(1, 1\)"),
        ({"weight": [1.0]}, "weight"),
        ({"weight": [[1.0, 2.0], [3.0]]}, r"layers\[1\]"),
        ({"bias": [1.0, float("nan")]}, "not finite"),
        ({"bias": [1.0]}, r"bias \(1,\)"),
        ({"activation": "gelu"}, "activation 'gelu'"),
    ],
)
def test_layers_that_do_not_fit_are_named(change: dict[str, Any], said: str) -> None:
    raw = as_lists(random_network([3, 4, 2], seed=1))
    raw[1] |= change
    with pytest.raises(ValueError, match=said):
        from_lists(raw, 3)
