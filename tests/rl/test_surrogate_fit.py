"""Fitting: gradients held against differences, fits against surfaces that are known, folds against leaks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rl.authors_table import authors_gain
from rl.dense import forward
from rl.quality import QualityRecord, QualityTable
from rl.surrogate import BadSurrogate
from rl.surrogate_fit import (
    AUTHORS,
    SMOOTH_GAIN,
    SMOOTH_PPL,
    Points,
    SurrogateSettings,
    _Network,
    averaged,
    cross_validate,
    fit,
    points_of,
)
from tests.fakes.small_policy import random_network

QUICK_AUTHORS = replace(AUTHORS, steps=400)
SPLITS = (1, 4, 8, 16, 24, 31)


def true_ppl(loss: float, split: float, sigma: float) -> float:
    return 50.0 * math.exp(loss + 0.05 * sigma * math.exp(-split / 16))


def record(loss: float, split: int, sigma: float, *noise: float) -> QualityRecord:
    ppl = true_ppl(loss, split, sigma)
    return QualityRecord(split, loss, sigma, "element", "zero", "fp32", tuple(ppl * each for each in noise), 4096)


def table(noise: float = 0.0, seed: int = 0) -> QualityTable:
    rng = np.random.default_rng(seed)
    records = [
        record(loss, split, sigma, *(1.0 + noise * rng.normal(size=5)))
        for loss in (0.0, 0.05, 0.1, 0.2, 0.3)
        for split in SPLITS
        for sigma in (0.0, 5.0)
    ]
    return QualityTable("tiny", "", 32, 256, tuple(records))


def authors_points() -> Points:
    rows = np.array([[loss, split, 0.0] for loss in np.arange(0.02, 0.31, 0.04) for split in range(1, 11)])
    return Points(rows, authors_gain()(*rows.T), None, tuple(range(1, 11)), "authors", "", 32)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_are_those_of_differences(activation: str) -> None:
    network = _Network((3, 5, 4, 1), activation, 0.1)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    weights, rows, target = network.drawn(rng), rng.normal(size=(7, 3)), rng.normal(size=7)
    _, gradient = network.loss(weights, rows, target)
    for index in range(len(weights)):
        step = np.zeros_like(weights)
        step[index] = 1e-6
        up, down = (network.loss(weights + sign * step, rows, target)[0] for sign in (1, -1))
        assert gradient[index] == pytest.approx((up - down) / 2e-6, abs=1e-6)


def test_networks_side_by_side_give_their_mean() -> None:
    members = [random_network([3, 6, 5, 1], seed) for seed in range(3)]
    rows = np.random.default_rng(9).normal(size=(11, 3))
    expected = np.mean([forward(member, rows) for member in members], axis=0)
    np.testing.assert_allclose(forward(averaged(members), rows), expected, rtol=1e-6)


@pytest.mark.parametrize("settings", [SMOOTH_GAIN, SMOOTH_PPL])
def test_held_out_points_of_a_smooth_surface_are_predicted(settings: SurrogateSettings) -> None:
    found = cross_validate(points_of(table(noise=0.002)), settings, folds=5)
    assert found.gain.r2 > 0.95
    assert found.gain.points == 60
    assert (found.ppl is None) == (settings.form == "gain")
    if found.ppl is not None:
        assert found.ppl.r2 > 0.95


@pytest.mark.parametrize("settings", [QUICK_AUTHORS, SMOOTH_GAIN])
def test_the_authors_surface_is_learned(settings: SurrogateSettings) -> None:
    points = authors_points()
    found = fit(points, settings)
    assert np.max(np.abs(found(*points.rows.T) - points.gain)) < 0.01


def test_held_out_points_of_the_authors_surface_are_predicted() -> None:
    assert cross_validate(authors_points(), SMOOTH_GAIN, folds=5).gain.r2 > 0.95


def test_noise_without_a_surface_is_not_predicted() -> None:
    points = authors_points()
    noise = np.random.default_rng(3).normal(size=len(points.gain))
    assert cross_validate(replace(points, gain=noise), SMOOTH_GAIN, folds=5).gain.r2 < 0.2


def test_the_same_seed_gives_the_same_surrogate() -> None:
    points = authors_points()
    first, second, other = (fit(points, QUICK_AUTHORS, seed)(*points.rows.T) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def test_points_without_a_number_are_left_out_and_counted() -> None:
    whole = table()
    spoiled = [
        replace(each, runs=(math.nan,) * 5) if (each.loss, each.split) == (0.3, 1) else each for each in whole.records
    ]
    points = points_of(replace(whole, records=tuple(spoiled)))
    assert (len(points.rows), points.left_out) == (58, 2)
    assert np.isfinite(points.gain).all()
    assert fit(points, SMOOTH_PPL).notes["left_out"] == 2


def test_a_points_gain_is_the_tables() -> None:
    whole = table(noise=0.01)
    points = points_of(whole)
    np.testing.assert_allclose(points.gain, whole.gain(*points.rows.T), rtol=1e-9, atol=1e-12)


def test_what_cannot_be_fitted_is_said() -> None:
    points = authors_points()
    with pytest.raises(BadSurrogate, match="no perplexities"):
        fit(points, SMOOTH_PPL)
    with pytest.raises(BadSurrogate, match="at least 6"):
        Points(points.rows[:3], points.gain[:3], None, (1, 2))
    with pytest.raises(BadSurrogate, match="1 folds of 80"):
        cross_validate(points, SMOOTH_GAIN, folds=1)
