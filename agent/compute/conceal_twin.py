"""Concealment in NumPy: csrc/conceal.cpp, bit for bit, which explains the method.

Sums are made in the order of `dot` in csrc/dispatch.hpp: 32 side by side, then halved until one is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_RESIDUAL_LEFT = np.float32(1e-6)
_MOST_STEPS = 64
_MOST_ENERGY = np.float32(1e30)
_DOT_LANES = 32


def conceal(values: Float32, lost: NDArray[np.bool_], mean: Float32, spread: Float32, precision: Float32) -> None:
    """One token's lost elements [H], in place; arguments as in `kernels.conceal`."""
    index = np.flatnonzero(lost)
    if not len(index):
        return
    with np.errstate(all="ignore"):
        deviation = np.where(lost, np.float32(0), (values - mean) / spread)
        residual = np.float32(0) - _dots(precision[index], deviation)
        moved = _solve(precision[np.ix_(index, index)], residual) * spread[index]
        values[index] = mean[index] + moved


def _solve(matrix: Float32, residual: Float32) -> Float32:
    solution, direction = np.zeros_like(residual), residual.copy()
    energy = _dots(residual[None], residual)[0]
    enough = energy * _RESIDUAL_LEFT
    if not energy < _MOST_ENERGY:
        return solution
    for _ in range(_MOST_STEPS):
        if not energy > enough:
            break
        image = _dots(matrix, direction)
        curvature = _dots(direction[None], image)[0]
        if not curvature > 0:
            break
        length = energy / curvature
        solution += length * direction
        residual += -length * image
        left = _dots(residual[None], residual)[0]
        direction = residual + left / energy * direction
        energy = left
    return solution


def _dots(rows: Float32, vector: Float32) -> Float32:
    """Each of rows [n, size] times the vector: [n]."""
    padding = -len(vector) % _DOT_LANES
    products = np.pad(rows * vector, ((0, 0), (0, padding))).reshape(len(rows), -1, _DOT_LANES)
    # Accumulated, not summed: NumPy's sum chooses its own order. The last zero makes -0 what a sum from 0 on would be.
    sums: Float32 = np.add.accumulate(products, axis=1)[:, -1] + np.float32(0)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]
