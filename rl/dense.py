"""Chains of linear layers in NumPy: what surrogates and policies are made of once they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rl.arrays import FloatArray

Activation = Literal["tanh", "relu", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One linear layer: x @ weight.T + bias, and what follows it."""

    weight: NDArray[Any]
    """(out, in), as torch keeps it."""
    bias: NDArray[Any]
    """(out,)"""
    activation: Activation


def forward(layers: Sequence[Dense], rows: NDArray[Any]) -> NDArray[Any]:
    """What the last layer gives for rows of shape (n, features)."""
    for layer in layers:
        rows = activated(layer.activation, rows @ layer.weight.T + layer.bias)
    return rows


def activated(activation: Activation, values: NDArray[Any]) -> NDArray[Any]:
    """The activation of each element."""
    if activation == "none":
        return values
    result: NDArray[Any] = np.tanh(values) if activation == "tanh" else np.maximum(values, 0.0)
    return result


def as_lists(layers: Sequence[Dense]) -> list[dict[str, Any]]:
    """For JSON; `from_lists` gives the same layers back."""
    return [
        {"weight": layer.weight.tolist(), "bias": layer.bias.tolist(), "activation": layer.activation}
        for layer in layers
    ]


def from_lists(raw: Sequence[dict[str, Any]], features: int) -> tuple[Dense, ...]:
    """Raises ValueError for layers that do not fit each other, or hold what is no finite number."""
    layers = []
    for index, each in enumerate(raw):
        try:
            weight, bias = (_finite(each[name]) for name in ("weight", "bias"))
            activation = each["activation"]
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"layers[{index}]: {problem!r}") from None
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != features:
            raise ValueError(f"layers[{index}]: weight {weight.shape} and bias {bias.shape} after {features} numbers")
        if activation not in ("tanh", "relu", "none"):
            raise ValueError(f"layers[{index}]: activation {activation!r} is none of tanh, relu, none")
        layers.append(Dense(weight, bias, activation))
        features = len(bias)
    return tuple(layers)


def _finite(values: object) -> FloatArray:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError("numbers that are not finite")
    return array
