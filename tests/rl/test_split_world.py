"""Worlds: what a move does to split, channel and reward, and where episodes begin."""

from __future__ import annotations

import numpy as np
import pytest

from rl.arrays import FloatArray
from rl.authors_table import authors_gain
from rl.channel import loss_probability, m_of_loss
from rl.controller import Observation
from rl.reward import RewardWeights
from rl.split_world import ACTIONS_3, ACTIONS_5, ACTIONS_9, CASES, AuthorsWorld, CaseName, ChannelWorld


def returns(seed: int, n: int) -> FloatArray:
    """Of episodes whose actions take turns."""
    world = AuthorsWorld(authors_gain(), actions=ACTIONS_3)
    world.reset(np.random.default_rng(seed), n)
    total = np.zeros(n)
    for step in range(world.horizon):
        seen, reward, over = world.step(np.full(n, step % 3))
        total += reward
        assert seen.shape == (n, 2)
        assert over.all() == (step == world.horizon - 1)
    return total


def test_episodes_are_five_steps_and_repeat_with_their_seed() -> None:
    assert AuthorsWorld(authors_gain()).horizon == 5
    np.testing.assert_array_equal(returns(3, 7), returns(3, 7))
    assert (returns(3, 7) != returns(4, 7)).all()


def test_who_steps_on_after_the_end_is_told() -> None:
    world = AuthorsWorld(authors_gain(), horizon=1)
    with pytest.raises(AssertionError, match="reset comes first"):
        world.step(np.zeros(1, np.int64))
    world.reset(np.random.default_rng(0), 1)
    world.step(np.zeros(1, np.int64))
    with pytest.raises(AssertionError, match="are over"):
        world.step(np.zeros(1, np.int64))


def test_a_move_beyond_the_edge_is_shortened_and_drifts_by_what_it_moved() -> None:
    world = AuthorsWorld(authors_gain(), actions=ACTIONS_9)
    world.start(np.array([[0.2]]), np.array([1]), np.random.default_rng(0))
    seen, reward, _ = world.step(np.array([ACTIONS_9.index(-4)]))
    np.testing.assert_allclose(seen, [[0.2 * 1.0005, 1.0]])
    assert reward == pytest.approx([10 * authors_gain()(seen[:, 0], seen[:, 1], np.zeros(1))[0] + 0.9])


@pytest.mark.parametrize(
    ("move", "drift"), [(-4, 1.002), (-3, 1.0015), (-2, 1.001), (1, 0.9995), (3, 0.9985), (4, 0.998)]
)
def test_loss_drifts_as_the_authors_have_it_but_for_the_slip_at_three(move: int, drift: float) -> None:
    world = AuthorsWorld(authors_gain(), actions=ACTIONS_9)
    world.start(np.array([[0.2], [0.2999]]), np.array([5, 5]), np.random.default_rng(0))
    seen, _, _ = world.step(np.full(2, ACTIONS_9.index(move)))
    np.testing.assert_allclose(seen, [[0.2 * drift, 6.0 + move], [min(0.2999 * drift, 0.30), 6.0 + move]])


def test_to_stay_in_the_first_step_earns_what_the_split_earns() -> None:
    world = AuthorsWorld(authors_gain(), actions=ACTIONS_3)
    for _ in range(2):
        world.start(np.array([[0.1]]), np.array([6]), np.random.default_rng(0))
        _, reward, _ = world.step(np.zeros(1, np.int64))
        assert reward[0] == pytest.approx(10 * 0.021 + 0.3), "neither alpha nor what an earlier episode left"


@pytest.mark.parametrize(
    ("case", "losses", "splits"), [("L", (0.01, 0.1), (1, 5)), ("H", (0.2, 0.3), (6, 10)), ("A", (0.01, 0.3), (1, 9))]
)
def test_episodes_begin_where_their_case_says(
    case: CaseName, losses: tuple[float, float], splits: tuple[int, int]
) -> None:
    world = AuthorsWorld(authors_gain(), case=case)
    loss, split = world.reset(np.random.default_rng(0), 5000).T
    assert (loss.min(), loss.max()) == pytest.approx(losses, abs=1e-3)
    assert (split.min(), split.max()) == splits
    counts = np.unique(split, return_counts=True)[1]
    assert counts.min() > 0.8 * counts.max(), "evenly"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_cases_fit_however_few_splits_there_are(count: int) -> None:
    for case in CASES.values():
        start, stop = case.place_range(count)
        assert 0 <= start < stop <= count


def test_action_sets_are_the_papers() -> None:
    assert [sorted(actions) for actions in (ACTIONS_3, ACTIONS_5, ACTIONS_9)] == [
        list(range(-reach, reach + 1)) for reach in (1, 2, 4)
    ]


def test_m_walks_within_its_range_and_sigma_stays() -> None:
    world = ChannelWorld(authors_gain(), sigmas=(0.0, 5.0), horizon=50)
    first = seen = world.reset(np.random.default_rng(0), 1000)
    for _ in range(50):
        before = seen
        seen, _, _ = world.step(np.zeros(1000, np.int64))
    np.testing.assert_array_equal(seen[:, 0], first[:, 0])
    assert set(seen[:, 0]) == {0.0, 5.0}
    assert (seen[:, 1].min(), seen[:, 1].max()) == (0.5, 3.0)
    inner = (before[:, 1] > 1.1) & (before[:, 1] < 2.4)
    assert (seen[inner, 1] - before[inner, 1]).std() == pytest.approx(0.15, rel=0.1)


def test_a_channels_reward_is_at_the_loss_of_its_m_and_at_its_sigma() -> None:
    asked = []

    def gain(loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        asked.append((loss, split, sigma))
        return np.zeros_like(loss)

    world = ChannelWorld(gain, splits=(2, 8), weights=RewardWeights(load=2.0))
    earned = world.rewards(np.array([[5.0, 1.0]]), np.array([1]), np.array([0]))
    assert earned == pytest.approx([2.0 * (8 - 2) / 8])
    assert [float(each[0]) for each in asked[0]] == pytest.approx([float(loss_probability(1.0)), 2.0, 5.0])


def test_a_move_is_rewarded_under_the_channel_that_follows_it() -> None:
    world = ChannelWorld(authors_gain())
    seen = world.reset(np.random.default_rng(0), 20)
    after, reward, _ = world.step(np.zeros(20, np.int64))
    assert (after[:, 1] != seen[:, 1]).all()
    gain = authors_gain()(loss_probability(after[:, 1]), after[:, 2], after[:, 0])
    np.testing.assert_allclose(reward, 10 * gain + (10 - after[:, 2]) / 10)


def test_what_is_measured_leads_back_to_the_channel() -> None:
    authors, paper = AuthorsWorld(authors_gain()), ChannelWorld(authors_gain())
    (seen,) = authors.measured(np.array([[0.12]]), np.array([4]))
    assert (seen.split, seen.loss, seen.m) == (5, 0.12, None)
    assert authors.channel_of(seen) == pytest.approx([0.12])
    (seen,) = paper.measured(np.array([[5.0, 1.2]]), np.array([4]))
    assert (seen.split, seen.sigma, seen.m) == (5, 5.0, 1.2)
    assert paper.channel_of(seen) == pytest.approx([5.0, 1.2])
    assert paper.channel_of(Observation(5, loss=0.1)) == pytest.approx([0.0, float(m_of_loss(0.1))])
    assert paper.channel_of(Observation(5, loss=0.9)) == pytest.approx([0.0, 0.5])
    assert authors.channel_of(Observation(5)) is None
    assert paper.channel_of(Observation(5)) is None
