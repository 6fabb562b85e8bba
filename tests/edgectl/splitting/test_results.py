"""Curves, intervals and regressions against their definitions."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from edgectl.splitting.results import (
    CURVE_POINTS,
    Violin,
    choices_of,
    learning_curve,
    printed,
)
from edgectl.splitting.runs import RunResult
from rl.evaluate import Interval


def test_an_interval_as_reports_show_it() -> None:
    assert printed(Interval(2.0, None)) == "2.000"
    assert printed(Interval(2.0, 0.25)) == "2.000 ± 0.250"


def test_a_curve_is_the_mean_over_seeds_of_what_each_stretch_has() -> None:
    runs = [
        RunResult(curve=tuple((at, float(at + shift)) for at in range(10, 1201, 10)), returns=(1.0,), mean=1.0)
        for shift in (-5, 5)
    ]
    curve = learning_curve("PPO", runs)
    assert len(curve.points) == CURVE_POINTS
    assert [point.at for point in curve.points] == pytest.approx([20.0 * i for i in range(1, CURVE_POINTS + 1)])
    # Between 0 and 20 lie 10 and 20.
    assert curve.points[0].value.mean == pytest.approx(15.0)
    assert curve.points[-1].value.mean == pytest.approx(1195.0)
    assert curve.points[0].value.half == pytest.approx(Interval.of([10.0, 20.0]).half)


def test_few_points_are_kept() -> None:
    curve = learning_curve("PPO", [RunResult(curve=((400, 1.0), (800, 2.0)), returns=(1.0,), mean=1.0)])
    assert [(point.at, point.value.mean) for point in curve.points] == [(400.0, 1.0), (800.0, 2.0)]


def test_a_straight_line_is_found() -> None:
    points = [(i / 100, 1 + i // 5) for i in range(0, 31, 5)]
    choices = choices_of("x", points)
    line = stats.linregress([loss for loss, _ in points], [split for _, split in points])
    assert choices.slope == pytest.approx(line.slope)
    assert choices.intercept == pytest.approx(line.intercept)
    assert choices.r_squared == pytest.approx(1.0)
    assert choices.loess[0] == pytest.approx((0.0, 1.0), abs=1e-6)
    assert choices.loess[-1] == pytest.approx((0.3, 7.0), abs=1e-6)


def test_r_squared_of_a_cloud_and_of_one_level() -> None:
    rng = random.Random(3)
    points = [(rng.random(), rng.randint(1, 10)) for _ in range(200)]
    line = stats.linregress([loss for loss, _ in points], [split for _, split in points])
    assert choices_of("x", points).r_squared == pytest.approx(line.rvalue**2)
    level = choices_of("x", [(i / 10, 7) for i in range(10)])
    assert (level.r_squared, level.slope) == (0.0, pytest.approx(0.0, abs=1e-9))
    with pytest.raises(ValueError, match="too few"):
        choices_of("x", [(0.1, 1)])


def test_quartiles() -> None:
    violin = Violin("x", (1.0, 2.0, 3.0, 4.0, 5.0))
    assert (violin.mean, violin.quartiles) == (3.0, (2.0, 3.0, 4.0))
