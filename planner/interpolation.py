"""Measured points made into functions: piecewise linear, and careful outside of what was measured.

Between points lies the line through its neighbours. Above the last point the line through the last two goes on, but
never below the last point: more work is never assumed to be faster. Below the first point the line through the first
two goes on, but stays between the first point and its proportional part.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

from planner.profile import DecodePoint, HeadPoint, PrefillPoint


class Curve:
    """A time over one quantity, in milliseconds.

    A single point says nothing about a slope: above it the time grows in proportion, or, where the quantity hardly
    matters, stays (`flat`); below it, it stays.
    """

    def __init__(self, points: Iterable[tuple[float, float]], *, flat: bool = False) -> None:
        """Raises ValueError without points, for two at one place, and for what is no number from 0."""
        ordered = sorted(points)
        if not ordered:
            raise ValueError("a curve needs at least one point")
        for place, value in ordered:
            if not (0 <= place < math.inf and 0 <= value < math.inf):
                raise ValueError(f"a point at {place} with {value} ms")
        self._places = [place for place, _ in ordered]
        self._values = [value for _, value in ordered]
        self._flat = flat
        for before, after in zip(self._places, self._places[1:], strict=False):
            if before == after:
                raise ValueError(f"two points at {after:g}")

    def __call__(self, place: float) -> float:
        places, values = self._places, self._values
        if len(places) == 1:
            grows = place > places[0] > 0 and not self._flat
            return values[0] * place / places[0] if grows else values[0]
        after = min(max(bisect_right(places, place), 1), len(places) - 1)
        left, right = places[after - 1], places[after]
        share = (place - left) / (right - left)
        value = values[after - 1] * (1 - share) + values[after] * share
        if place < places[0]:
            return min(max(value, values[0] * place / places[0]), values[0])
        if place > places[-1]:
            return max(value, values[-1])
        return value


class DecodeTimes:
    """Time of one layer's decode step over (rows, context): bilinear on a full grid.

    Each number of rows may have been measured at contexts of its own; what only one context tells is taken to hold
    for all.
    """

    def __init__(self, points: Iterable[DecodePoint]) -> None:
        by_rows: dict[int, list[tuple[float, float]]] = {}
        for point in points:
            by_rows.setdefault(point.rows, []).append((point.context, point.layer.ms))
        self._curves = {rows: Curve(curve, flat=True) for rows, curve in by_rows.items()}

    def __call__(self, rows: int, context: float) -> float:
        return Curve((measured, curve(context)) for measured, curve in self._curves.items())(rows)


def prefill_curve(points: Iterable[PrefillPoint], decode: DecodeTimes) -> Curve:
    """Time of one layer over the tokens of a chunk. A chunk of one token is a decode step without context."""
    measured = {point.tokens: point.layer.ms for point in points}
    measured.setdefault(1, decode(1, 0))
    return Curve(measured.items())


def head_curve(points: Iterable[HeadPoint]) -> Curve:
    return Curve((point.rows, point.head.ms) for point in points)
