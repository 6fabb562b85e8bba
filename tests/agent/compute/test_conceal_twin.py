"""Concealment against the conditional mean solved in doubles, and every set of kernels bit for bit with its twin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.conceal_twin import conceal

Float32 = NDArray[np.float32]


class Known(NamedTuple):
    samples: Float32
    mean: Float32
    spread: Float32
    precision: Float32
    inverse: NDArray[np.float64]


def known(size: int, seed: int = 0, samples: int = 8) -> Known:
    """Gaussian elements with correlations, of sizes a hundredfold apart."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size)) * np.logspace(0, 2, size)[:, None]
    covariance = mixing @ mixing.T + np.diag(np.logspace(0, 4, size))
    inverse = np.linalg.inv(covariance)
    spread = 1 / np.sqrt(np.diag(inverse))
    mean = rng.normal(size=size)
    drawn = rng.multivariate_normal(mean, covariance, samples, method="cholesky")
    scaled = inverse * spread[:, None] * spread
    return Known(*(array.astype(np.float32) for array in (drawn, mean, spread, scaled)), inverse)


def conditional_mean(row: Float32, lost: NDArray[np.bool_], of: Known) -> NDArray[np.float64]:
    came, gone = np.flatnonzero(~lost), np.flatnonzero(lost)
    deviation = row[came].astype(np.float64) - of.mean[came]
    mended = row.astype(np.float64)
    moved = np.linalg.solve(of.inverse[np.ix_(gone, gone)], of.inverse[np.ix_(gone, came)] @ deviation)
    mended[gone] = of.mean[gone] - moved
    return mended


@pytest.mark.parametrize("size", [2, 31, 33, 128])
@pytest.mark.parametrize("loss", [0.05, 0.3, 0.7])
def test_what_was_lost_becomes_its_conditional_mean(size: int, loss: float) -> None:
    of = known(size)
    mask = np.random.default_rng(size).random(of.samples.shape) < loss
    for row, lost in zip(of.samples, mask, strict=True):
        mended = row.copy()
        conceal(mended, lost, of.mean, of.spread, of.precision)
        error = (mended - conditional_mean(row, lost, of)) / of.spread
        assert np.abs(error).max() < 0.02 * max(1.0, np.abs((row - of.mean) / of.spread).max())
        np.testing.assert_array_equal(mended[~lost], row[~lost])


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 150), loss=st.floats(0, 1), seed=st.integers(0, 1000), odd=st.booleans())
def test_every_set_gives_the_twins_bits(size: int, loss: float, seed: int, odd: bool) -> None:
    of = known(size, seed, samples=3)
    rng = np.random.default_rng(seed)
    mask = rng.random(of.samples.shape) < loss
    values = of.samples.copy()
    if odd:
        values[0, rng.integers(size)] = rng.choice([np.nan, np.inf, 3e38, 1e-40])
    every = [values.copy() for _ in kernels.available()]
    for using, mended in zip(kernels.implementations().values(), every, strict=True):
        kernels.conceal(mended, mask, of.mean, of.spread, of.precision, using=using)
        np.testing.assert_array_equal(mended.view(np.uint32), every[0].view(np.uint32))
    for token in range(3):
        alone = values[token : token + 1].copy()
        kernels.conceal(alone, mask[token : token + 1], of.mean, of.spread, of.precision)
        np.testing.assert_array_equal(alone[0].view(np.uint32), every[0][token].view(np.uint32))


def test_a_token_of_which_nothing_came_is_the_mean() -> None:
    of = known(40)
    mended = of.samples.copy()
    kernels.conceal(mended, np.ones(mended.shape, np.bool_), of.mean, of.spread, of.precision)
    np.testing.assert_array_equal(mended, np.tile(of.mean, (len(mended), 1)))


def test_what_is_no_number_never_spreads_to_what_was_lost() -> None:
    of = known(40)
    mended = of.samples[:2].copy()
    mended[:, 3] = np.nan, np.inf
    mask = np.zeros(mended.shape, np.bool_)
    mask[:, 20:] = True
    kernels.conceal(mended, mask, of.mean, of.spread, of.precision)
    np.testing.assert_array_equal(mended[:, 20:], np.tile(of.mean[20:], (2, 1)))


@pytest.mark.parametrize("name", kernels.available())
def test_mistakes_are_named(name: str) -> None:
    using, of = kernels.implementations()[name], known(8)
    good = {"hidden": of.samples, "lost": np.zeros((8, 8), np.bool_), "mean": of.mean, "spread": of.spread}
    for text, wrong in (
        ("lost: dtype uint8", {"lost": np.zeros((8, 8), np.uint8)}),
        ("lost: the shape", {"lost": np.zeros((8, 7), np.bool_)}),
        ("lost: a C-contiguous", {"lost": np.zeros((8, 16), np.bool_)[:, ::2]}),
        ("mean: dtype float64", {"mean": np.zeros(8)}),
        ("of the hidden size", {"spread": of.spread[:7]}),
        ("of the hidden size", {"precision": of.precision[:7]}),
        ("tokens, hidden size", {"hidden": of.samples[0]}),
    ):
        with pytest.raises(ValueError, match=text):
            kernels.conceal(**{**good, "precision": of.precision, **wrong}, using=using)  # type: ignore[arg-type]
