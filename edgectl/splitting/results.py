"""What the splitting study found, as data: curves, distributions, choices, rows; and how runs become these. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from edgectl.splitting.runs import RunResult
from rl.evaluate import Interval

CURVE_POINTS = 60
"""Of a learning curve: 240,000 steps in strides of 4,000."""
LOESS_SHARE = 2 / 3
"""Of the points that each local fit of Fig. 7 sees."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    at: float
    value: Interval


@dataclass(frozen=True, slots=True)
class Curve:
    """A line with its interval."""

    name: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line to hold curves against: an optimum, a random policy."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    levels: tuple[Level, ...] = ()
    logarithmic: tuple[str, ...] = ()
    """Which of x and y."""


@dataclass(frozen=True, slots=True)
class Violin:
    """Returns of one kind of policy."""

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        low, middle, high = np.quantile(np.array(self.values), (0.25, 0.5, 0.75))
        return float(low), float(middle), float(high)


@dataclass(frozen=True, slots=True)
class Choices:
    """Which split a policy ends an episode at, by loss: the points, a local regression and a straight line."""

    name: str
    points: tuple[tuple[float, int], ...]
    loess: tuple[tuple[float, float], ...]
    slope: float
    """Layers per unit of loss probability."""
    intercept: float
    r_squared: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: a name and its cells, as they are printed."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim of the paper, or target of ours, beside what was found."""

    what: str
    paper: str
    ours: str
    verdict: str
    """reproduced, not reproduced, reached, missed, or why neither can be said."""


@dataclass(frozen=True, slots=True)
class Section:
    """One figure or table of the report, in its order."""

    key: str
    """Name of its picture: figure-5, table-iv."""
    title: str
    text: str
    panels: tuple[Panel, ...] = ()
    violins: tuple[Violin, ...] = ()
    choices: tuple[Choices, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def has_picture(self) -> bool:
        return bool(self.panels or self.violins or self.choices)


@dataclass(frozen=True, slots=True)
class Study:
    """All of it."""

    size: str
    command: str
    model: str
    machine: str
    findings: tuple[Finding, ...]
    sections: tuple[Section, ...]
    seconds: tuple[tuple[str, float], ...]
    """Per part, the time it took when it was last computed."""


def printed(value: Interval) -> str:
    """As reports show it."""
    return f"{value.mean:.3f}" if value.half is None else f"{value.mean:.3f} ± {value.half:.3f}"


def learning_curve(name: str, results: Sequence[RunResult]) -> Curve:
    """The runs' curves as one with an interval over seeds, on at most CURVE_POINTS points.

    Between two of them a run's points are averaged; where a run has none the interval is of the others.
    """
    last = max(at for result in results for at, _ in result.curve)
    edges = np.linspace(0, last, CURVE_POINTS + 1)
    points = []
    for low, high in pairwise(edges.tolist()):
        means = [
            fmean(inside) for result in results if (inside := [value for at, value in result.curve if low < at <= high])
        ]
        if means:
            points.append(CurvePoint(float(high), Interval.of(means)))
    return Curve(name, tuple(points))


def choices_of(name: str, points: Sequence[tuple[float, int]]) -> Choices:
    """Least squares and LOESS (statsmodels) through where episodes ended.

    R² is 0 where every episode ended at the same split: there is nothing to explain. Raises ValueError for fewer than
    three points.
    """
    if len(points) < 3:
        raise ValueError(f"{len(points)} choices are too few for a regression")
    losses = np.array([loss for loss, _ in points])
    splits = np.array([split for _, split in points], np.float64)
    slope, intercept = np.polyfit(losses, splits, 1)
    spread = float(np.sum((splits - splits.mean()) ** 2))
    residual = float(np.sum((splits - (slope * losses + intercept)) ** 2))
    smooth = _loess(losses, splits)
    return Choices(
        name,
        tuple((float(loss), int(split)) for loss, split in points),
        tuple((float(loss), float(split)) for loss, split in smooth),
        float(slope),
        float(intercept),
        1.0 - residual / spread if spread > 0.0 else 0.0,
    )


def _loess(losses: NDArray[np.float64], splits: NDArray[np.float64]) -> NDArray[np.float64]:
    """At 25 losses, from the lowest to the highest."""
    from statsmodels.nonparametric.smoothers_lowess import lowess  # type: ignore[import-untyped]

    smooth = np.asarray(lowess(splits, losses, frac=LOESS_SHARE, it=0, delta=0.01 * float(np.ptp(losses))))
    at = np.linspace(losses.min(), losses.max(), 25)
    return np.column_stack([at, np.interp(at, smooth[:, 0], smooth[:, 1])])
