"""Training: every learner learns something small, the same settings give the same policy, torch stays inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from rl.authors_table import authors_gain
from rl.dense import forward
from rl.evaluate import by_network
from rl.rollout import Starts, at_random, play
from rl.split_env import SplitVecEnv
from rl.split_world import ACTIONS_3, AuthorsWorld
from rl.train import _Centred, batch_of, environments, policy_layers, train
from rl.train_settings import Algorithm, TrainSettings

SHORT = TrainSettings(steps=400, rollout=200)


def deeper_is_better(loss: Any, split: Any, sigma: Any) -> Any:
    return np.asarray(split) * 0.05


def world(actions: tuple[int, ...] = ACTIONS_3) -> AuthorsWorld:
    return AuthorsWorld(deeper_is_better, actions=actions)


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings("ppo", 3000, rollout=100, learning_rate=3e-3, final_learning_rate=1e-3),
        TrainSettings("a2c", 2400, learning_rate=3e-3),
        TrainSettings("dqn", 2400, learning_rate=3e-3),
    ],
)
def test_a_world_with_one_good_direction_is_learned(settings: TrainSettings) -> None:
    trained = train(world(), settings)
    starts = Starts.drawn(world(), 200, 0)
    earned = play(world(), by_network(trained.layers), starts).returns.mean()
    random = play(world(), at_random(np.random.default_rng(0)), starts).returns.mean()
    best = play(world(), lambda w, seen: np.full(len(seen), 2), starts).returns.mean()
    assert earned > random + 0.7 * (best - random)
    assert trained.steps >= settings.steps
    assert trained.curve[-1][1] > trained.curve[0][1]


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "dqn"])
def test_the_same_settings_give_the_same_policy(algorithm: Algorithm) -> None:
    settings = replace(SHORT, algorithm=algorithm)
    first, second, other = (train(world(), each) for each in (settings, settings, replace(settings, seed=1)))
    for one, two in zip(first.layers, second.layers, strict=True):
        np.testing.assert_array_equal(one.weight, two.weight)
    assert first.curve == second.curve
    assert np.any(first.layers[0].weight != other.layers[0].weight)
    assert np.any(first.layers[0].weight != first.untrained[0].weight)


def test_layers_score_as_the_library_does() -> None:
    model = PPO("MlpPolicy", SplitVecEnv(world(), 2, 0), n_steps=10, batch_size=10, seed=4, device="cpu")
    rows = np.random.default_rng(5).uniform(-1, 1, (20, 2)).astype(np.float32)
    with torch.no_grad():
        expected = model.policy.get_distribution(torch.from_numpy(rows)).distribution.logits.numpy()  # type: ignore[union-attr]
    scores = forward(policy_layers(model), rows)
    np.testing.assert_allclose(
        scores - scores.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-5
    )


def test_centred_rewards_change_no_return_and_no_order() -> None:
    plain, centred = SplitVecEnv(world(), 4, 0), _Centred(world(), 4, 0)
    actions = np.random.default_rng(3).integers(0, 3, (10, 4))
    for env in (plain, centred):
        env.reset()
    ours: list[Any] = []
    theirs: list[Any] = []
    for row in actions:
        for env, kept in ((plain, theirs), (centred, ours)):
            env.step_async(row)
            kept.append(env.step_wait())
    for (seen, reward, over, infos), (other, full, ended, told) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(seen, other)
        np.testing.assert_array_equal(over, ended)
        np.testing.assert_allclose(np.diff(reward), np.diff(full), rtol=1e-5)
        assert [info.get("episode") for info in infos] == [info.get("episode") for info in told]
    mean = np.mean([full for _, full, _, _ in theirs])
    np.testing.assert_allclose(ours[-1][1], theirs[-1][1] - mean, rtol=1e-5)


@pytest.mark.parametrize("rollout", [100, 300, 400, 2000])
def test_rollouts_are_whole_episodes_where_they_fit(rollout: int) -> None:
    count, steps = environments(world(), rollout)
    assert (count * steps, steps % world().horizon) == (rollout, 0)


@pytest.mark.parametrize(
    ("rollout", "wanted", "batch"), [(400, 100, 100), (400, 250, 200), (400, 1000, 400), (7, 4, 7), (9, 4, 3)]
)
def test_batches_are_whole(rollout: int, wanted: int, batch: int) -> None:
    assert batch_of(rollout, wanted) == batch


def test_long_episodes_get_enough_environments() -> None:
    long = AuthorsWorld(authors_gain(), horizon=300)
    assert environments(long, 400) == (8, 50)


def test_fewer_steps_than_a_rollout_are_one_rollout() -> None:
    assert train(world(), TrainSettings(steps=40)).steps == 40


def test_progress_is_told_and_logs_are_written(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    train(world(), replace(SHORT, steps=1200), lambda done, total: told.append((done, total)), tmp_path)
    assert told[-1] == (1200, 1200)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    train(world(), TrainSettings(steps=10))
    assert torch.get_num_threads() == before
