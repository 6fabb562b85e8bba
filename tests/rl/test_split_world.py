"""Worlds: what a move does to split, channel and reward."""

from __future__ import annotations

import numpy as np
import pytest

from rl.authors_table import authors_gain
from rl.split_world import ACTIONS_3, ACTIONS_9, AuthorsWorld, ChannelWorld


def test_episodes_are_five_steps_and_repeat_with_their_seed() -> None:
    world = AuthorsWorld(authors_gain(), actions=ACTIONS_3)
    for _ in range(2):
        seen = world.reset(np.random.default_rng(3), 7)
        assert seen.shape == (7, 2)
        total = np.zeros(7)
        for step in range(5):
            _, reward, over = world.step(np.full(7, step % 3))
            total += reward
            assert over.all() == (step == 4)
        assert total == pytest.approx(world_total(3, 7))


def world_total(seed: int, n: int) -> np.ndarray:
    world = AuthorsWorld(authors_gain(), actions=ACTIONS_3)
    world.reset(np.random.default_rng(seed), n)
    total: np.ndarray = sum(world.step(np.full(n, step % 3))[1] for step in range(5))
    return total


def test_a_move_beyond_the_edge_is_shortened_and_drifts_by_what_it_moved() -> None:
    world = AuthorsWorld(authors_gain(), actions=ACTIONS_9)
    world.start(np.array([[0.2]]), np.array([1]), np.random.default_rng(0))
    seen, reward, _ = world.step(np.array([ACTIONS_9.index(-4)]))
    np.testing.assert_allclose(seen, [[0.2 * 1.0005, 1.0]])
    assert reward == pytest.approx([10 * authors_gain()(seen[:, 0], seen[:, 1], np.zeros(1))[0] + 0.9])


def test_m_walks_within_its_range_and_gives_the_loss() -> None:
    world = ChannelWorld(authors_gain(), sigmas=(0.0, 5.0), horizon=50)
    seen = world.reset(np.random.default_rng(0), 100)
    for _ in range(50):
        seen, _, _ = world.step(np.zeros(100, np.int64))
    assert set(seen[:, 0]) == {0.0, 5.0}
    assert (seen[:, 1] >= 0.5).all()
    assert (seen[:, 1] <= 3.0).all()
