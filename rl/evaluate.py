"""What policies are worth: returns over common starts, head-room between random and best, intervals over seeds.

NumPy alone. Everyone is played from the same starts with the same noise (`rollout`), so that differences between two
are differences between their moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t  # type: ignore[import-untyped]

from rl.arrays import FloatArray, IntArray
from rl.dense import Dense, forward
from rl.rollout import Decide
from rl.split_world import SplitWorld

STARTS = 5_000


def by_network(layers: Sequence[Dense]) -> Decide:
    """The move with the highest score, as a deployed policy takes it."""
    return by_scores(lambda rows: forward(layers, rows))


def by_scores(scores: Callable[[NDArray[Any]], NDArray[Any]]) -> Decide:
    """The same of whatever scores moves (n, actions) for scaled observations (n, features)."""

    def decide(world: SplitWorld, seen: FloatArray) -> IntArray:
        actions: IntArray = np.argmax(scores(scaled(world, seen)), axis=1)
        return actions

    return decide


def scaled(world: SplitWorld, seen: FloatArray) -> FloatArray:
    """Observations (n, features) as networks see them: -1 to 1 over the world's bounds, 0 where these are one."""
    low = np.tile(np.asarray(world.observed_low, np.float64), world.frames)
    high = np.tile(np.asarray(world.observed_high, np.float64), world.frames)
    wide = high > low
    within: FloatArray = np.clip(2.0 * (seen - low) / np.where(wide, high - low, np.inf) - wide, -1.0, 1.0)
    return within


def head_room(value: float, random: float, best: float) -> float:
    """How far from random to best, as a share; NaN where there is no room."""
    return (value - random) / (best - random) if best > random else math.nan


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval (Student's t); None of one seed."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Raises ValueError of no values."""
        if not values:
            raise ValueError("no values to average")
        if len(values) < 2:
            return cls(fmean(values), None)
        half = float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(fmean(values), half)
