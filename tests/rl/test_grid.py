"""Interpolation on a grid, held against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from rl.grid import Grid


def test_it_is_scipys_linear_interpolation_inside() -> None:
    rng = np.random.default_rng(0)
    axes = tuple(np.sort(rng.uniform(0, 1, size)) for size in (4, 5, 3))
    grid = Grid(axes, rng.normal(size=(4, 5, 3)))
    places = [rng.uniform(axis[0], axis[-1], 200) for axis in axes]
    np.testing.assert_allclose(grid.at(*places), RegularGridInterpolator(axes, grid.values)(np.stack(places, 1)))


def test_it_is_constant_beyond_the_ends_and_along_an_axis_of_one() -> None:
    grid = Grid((np.array([0.0, 1.0]), np.array([7.0])), np.array([[2.0], [4.0]]))
    np.testing.assert_allclose(grid.at([-1.0, 0.5, 9.0], [0.0, 7.0, 99.0]), [2.0, 3.0, 4.0])


def test_what_is_no_number_stays_with_its_neighbours() -> None:
    grid = Grid((np.array([0.0, 1.0, 2.0]),), np.array([1.0, 2.0, np.nan]))
    assert grid.at(1.0) == 2.0
    assert np.isnan(grid.at(1.5))
    assert np.isnan(grid.at(np.nan))


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        Grid((np.array([0.0, 1.0]),), np.zeros(3))
    with pytest.raises(ValueError, match="ascend"):
        Grid((np.array([1.0, 1.0]),), np.zeros(2))
    with pytest.raises(ValueError, match="coordinates"):
        Grid((np.array([0.0, 1.0]),), np.zeros(2)).at(1.0, 2.0)
