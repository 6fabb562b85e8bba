"""Values on a rectangular grid, read between its points: linear along each axis, constant beyond the ends."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from rl.arrays import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Grid:
    """`values` has one axis per entry of `axes`, each ascending. Raises ValueError."""

    axes: tuple[FloatArray, ...]
    values: FloatArray

    def __post_init__(self) -> None:
        if self.values.shape != tuple(len(axis) for axis in self.axes):
            raise ValueError(f"values of shape {self.values.shape} on axes of {[len(axis) for axis in self.axes]}")
        if any(np.any(np.diff(axis) <= 0.0) for axis in self.axes):
            raise ValueError("an axis that does not ascend")

    def at(self, *places: ArrayLike) -> FloatArray:
        """Interpolated values, of the shape that the places, one per axis, broadcast to. A place that is no number
        gives none. Raises ValueError for another number of places than axes."""
        result = np.zeros(np.broadcast_shapes(*(np.shape(place) for place in places)))
        for index, weight in corners(self.axes, *places):
            # A corner without weight must not spread its NaN.
            result = result + np.where(weight == 0.0, 0.0, weight * self.values[index])
        return result


def corners(axes: tuple[FloatArray, ...], *places: ArrayLike) -> list[tuple[tuple[IntArray, ...], FloatArray]]:
    """The grid points around each place, 2 per axis that has so many: an index per axis, and weights, which sum to 1.

    All are of the shape that the places broadcast to. Raises ValueError for another number of places than axes.
    """
    if len(places) != len(axes):
        raise ValueError(f"{len(places)} coordinates for {len(axes)} axes")
    ends = [_ends(axis, np.asarray(place, np.float64)) for axis, place in zip(axes, places, strict=True)]
    found = []
    for choice in product(*((0, 1) if len(axis) > 1 else (0,) for axis in axes)):
        index = tuple(low + up for (low, _), up in zip(ends, choice, strict=True))
        weight = np.ones(())
        for (_, share), up in zip(ends, choice, strict=True):
            weight = weight * (share if up else 1.0 - share)
        found.append((index, weight))
    return found


def _ends(axis: FloatArray, place: FloatArray) -> tuple[IntArray, FloatArray]:
    """Index of the point below, and how far to the next one in [0, 1]."""
    low = np.clip(np.searchsorted(axis, place, side="right") - 1, 0, max(len(axis) - 2, 0))
    if len(axis) == 1:
        return low, np.zeros_like(place)
    share = (np.clip(place, axis[0], axis[-1]) - axis[low]) / (axis[low + 1] - axis[low])
    return low, share
