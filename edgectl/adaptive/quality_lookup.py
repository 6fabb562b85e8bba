"""A quality table as a decision reads it: the perplexities of all of its splits at one loss and sigma, at once.

The numbers are those of `QualityTable.ppl` and `.gain`; a decision wants them in microseconds, with a token waiting.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from rl.arrays import FloatArray
from rl.quality import BadQualityTable, QualityTable


class QualityLookup:
    """Linear in loss and sigma, constant beyond the table's ends, like the table."""

    def __init__(self, table: QualityTable) -> None:
        self.sigmas = table.sigmas
        self.places = {split: place for place, split in enumerate(table.splits)}
        self._losses = table.losses
        losses, sigmas = np.array(table.losses)[:, None, None], np.array(table.sigmas)[None, :, None]
        self._values = table.ppl(losses, np.array(table.splits, np.float64)[None, None, :], sigmas)
        """[losses, sigmas, splits]."""

    def ppl(self, loss: float, sigma: float) -> FloatArray:
        """[splits]: NaN where a point that counts is no number."""
        found = np.zeros(len(self.places))
        for row, share in _between(self._losses, loss):
            for column, part in _between(self.sigmas, sigma):
                # A point without weight must not spread its NaN.
                if share * part > 0.0:
                    found += share * part * self._values[row, column]
        return found

    def gain(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        """(n,), at the one loss and the one sigma that all n have: a `rl.quality.Gain`. Raises BadQualityTable where a
        perplexity is no number, KeyError for a split that is not the table's."""
        perplexities = self.ppl(float(loss[0]), float(sigma[0]))
        result: FloatArray = 1.0 - perplexities[[self.places[int(each)] for each in split]] * np.mean(
            1.0 / perplexities
        )
        if not np.isfinite(result).all():
            raise BadQualityTable("runs", f"no perplexity near loss {float(loss[0]):g}, sigma {float(sigma[0]):g}")
        return result


def _between(axis: Sequence[float], value: float) -> tuple[tuple[int, float], ...]:
    """The points of an axis around a value, each with its weight."""
    if len(axis) == 1 or value <= axis[0]:
        return ((0, 1.0),)
    if value >= axis[-1]:
        return ((len(axis) - 1, 1.0),)
    low = bisect_right(axis, value) - 1
    share = (value - axis[low]) / (axis[low + 1] - axis[low])
    return (low, 1.0 - share), (low + 1, share)
