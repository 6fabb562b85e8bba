"""The environments: Gymnasium's own checker, and the vector environment against single episodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO

from rl.authors_table import authors_gain
from rl.split_env import Scaling, SplitEnv, SplitVecEnv
from rl.split_world import ACTIONS_3, AuthorsWorld, ChannelWorld, SplitWorld


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads of torch that wait for each other take ten times as long on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def authors_world() -> AuthorsWorld:
    return AuthorsWorld(authors_gain(), actions=ACTIONS_3)


@pytest.mark.parametrize("world", [authors_world(), ChannelWorld(authors_gain(), sigmas=(0.0, 5.0))])
def test_gymnasium_finds_nothing_to_complain_about(world: SplitWorld) -> None:
    check_env(SplitEnv(world), skip_render_check=True)


def test_bounds_become_one_and_what_has_no_range_nothing() -> None:
    scaling = Scaling(ChannelWorld(authors_gain(), sigmas=(5.0,)))
    np.testing.assert_allclose(scaling(np.array([[5.0, 0.5, 1.0], [5.0, 3.0, 10.0]])), [[0, -1, -1], [0, 1, 1]])
    assert (scaling(np.array([[5.0, 99.0, 99.0]])) <= 1.0).all()


def test_a_vector_of_episodes_is_the_world_under_the_same_seed() -> None:
    world, vector = authors_world(), SplitVecEnv(authors_world(), 6, seed=4)
    scaling = Scaling(world)
    rng = np.random.default_rng(4)
    actions = np.random.default_rng(0).integers(0, 3, (10, 6))
    for step in range(10):
        if step % 5 == 0:
            seen = world.reset(rng, 6)
            if step == 0:
                np.testing.assert_array_equal(vector.reset(), scaling(seen))
            total = np.zeros(6)
        last, reward, over = world.step(actions[step])
        total += reward
        shown, earned, done, infos = vector.step(actions[step])
        np.testing.assert_allclose(earned, reward, rtol=1e-6)
        np.testing.assert_array_equal(done, over)
        if step % 5 == 4:
            for index, info in enumerate(infos):
                np.testing.assert_array_equal(info["terminal_observation"], scaling(last)[index])
                assert info["episode"]["r"] == pytest.approx(total[index])
                assert not info["TimeLimit.truncated"]
        else:
            np.testing.assert_array_equal(shown, scaling(last))


@pytest.mark.usefixtures("one_thread")
def test_stable_baselines_trains_on_it_repeatably() -> None:
    weights = []
    for _ in range(2):
        model = PPO(
            "MlpPolicy", SplitVecEnv(authors_world(), 10, seed=1), n_steps=5, batch_size=25, seed=2, device="cpu"
        )
        model.learn(200)
        weights.append(model.policy.action_net.weight.detach().numpy().copy())
    np.testing.assert_array_equal(*weights)
    assert model.ep_info_buffer is not None
    assert 1.0 < np.mean([info["r"] for info in model.ep_info_buffer]) < 4.0
