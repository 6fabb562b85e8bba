"""Policies that see no step counter, against trying all of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rl.arrays import FloatArray
from rl.authors_table import authors_gain
from rl.optimal import GridModel, solve
from rl.rollout import Starts, play, towards
from rl.split_world import ACTIONS_3, ACTIONS_9, AuthorsWorld, ChannelWorld
from rl.stationary import best_static, best_stationary, mean_return, nearest


class AnyGain:
    """Gains of four splits, whatever the loss."""

    def __init__(self, seed: int) -> None:
        self.gains = np.random.default_rng(seed).normal(0.0, 0.1, 4)

    def __call__(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        return np.asarray(self.gains[split.astype(int) - 1], np.float64)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_best_of_all_where_all_can_be_tried(seed: int) -> None:
    world = AuthorsWorld(AnyGain(seed), actions=ACTIONS_3, splits=(1, 2, 3, 4))
    model = GridModel.of(world, points=2)
    starts = model.start_shares()
    best = max(
        mean_return(model, np.tile(np.array(actions), (2, 1)), starts) for actions in product(range(3), repeat=4)
    )
    assert mean_return(model, best_stationary(model).actions, starts) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("world", [AuthorsWorld(authors_gain(), actions=ACTIONS_9), ChannelWorld(authors_gain())])
def test_it_lies_between_the_best_static_split_and_the_optimum(world: AuthorsWorld | ChannelWorld) -> None:
    optimum, starts = solve(world, points=61), Starts.drawn(world, 2000, seed=1)
    stationary = play(world, best_stationary(optimum.model).decide, starts).returns.mean()
    most = play(world, optimum.decide, starts).returns.mean()
    assert best_static(world, starts)[1] < stationary <= most + 1e-3
    assert stationary > most - 0.01


def test_the_best_static_split_is_the_best_of_them() -> None:
    world = AuthorsWorld(authors_gain(), case="H")
    starts = Starts.drawn(world, 500, seed=1)
    place, earned = best_static(world, starts)
    returns = [play(world, towards(other), starts).returns.mean() for other in range(10)]
    assert (place, earned) == (int(np.argmax(returns)), max(returns))


def test_nearest_is_the_nearest_along_each_axis() -> None:
    axes = (np.array([0.0, 1.0, 4.0]), np.array([10.0, 20.0]))
    assert nearest(axes, np.array([[0.4, 14.0], [0.6, 16.0], [9.0, -9.0]])).tolist() == [0, 3, 4]
