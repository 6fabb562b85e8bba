"""Worth of policies: the same numbers as by hand, and the same view of a world as learners have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rl.authors_table import authors_gain
from rl.dense import Dense
from rl.evaluate import Interval, by_network, head_room, scaled
from rl.rollout import Starts, always, play
from rl.split_env import Scaling
from rl.split_world import AuthorsWorld, ChannelWorld, SplitWorld


@pytest.mark.parametrize(
    "world",
    [AuthorsWorld(authors_gain()), ChannelWorld(authors_gain()), ChannelWorld(authors_gain(), sigmas=(1.0, 5.0))],
)
def test_networks_see_what_they_saw_in_training(world: SplitWorld) -> None:
    seen = world.reset(np.random.default_rng(1), 50) * 1.3
    np.testing.assert_allclose(scaled(world, seen), Scaling(world)(seen), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("move", [-4, 0, 3])
def test_a_network_of_one_mind_plays_one_move(move: int) -> None:
    world = AuthorsWorld(authors_gain())
    starts = Starts.drawn(world, 40, 0)
    bias = np.array([float(action == move) for action in world.actions])
    network = [Dense(np.zeros((len(bias), 2)), bias, "none")]
    np.testing.assert_array_equal(
        play(world, by_network(network), starts).returns, play(world, always(move), starts).returns
    )


def test_head_room() -> None:
    assert head_room(3.0, 2.0, 4.0) == 0.5
    assert math.isnan(head_room(3.0, 2.0, 2.0))


def test_intervals_are_students() -> None:
    values = [3.1, 3.15, 3.2, 3.12, 3.18]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = Interval.of(values)
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert Interval.of([2.0]) == Interval(2.0, None)
    with pytest.raises(ValueError, match="no values"):
        Interval.of([])
