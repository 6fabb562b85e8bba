"""The harder world: what its channel does on average, what a move costs, and what is seen of it."""

from __future__ import annotations

import numpy as np
import pytest

from rl.arrays import FloatArray
from rl.authors_table import authors_gain
from rl.channel import loss_probability
from rl.controllers import DpController
from rl.harder_world import HARDER_WEIGHTS, HarderWorld, Radio, planning_ahead
from rl.optimal import solve
from rl.reward import RewardWeights
from rl.rollout import Starts, always, at_random, by, play, towards
from rl.split_costs import SplitCosts


def run(world: HarderWorld, steps: int, n: int = 2000) -> np.ndarray:
    """(n, 5): the channel after so many steps."""
    rng = np.random.default_rng(1)
    channel = world.draw_channel(rng, n)
    for _ in range(steps):
        noise = rng.standard_normal((n, len(world.quadrature)))
        channel = world.channel_after(channel, np.zeros(n, np.int64), noise)
    return channel


def test_the_channel_stays_in_its_ranges_and_forgets_as_it_says() -> None:
    world = HarderWorld(authors_gain(), radio=Radio(trend_keeps=0.8, trend_step=0.01, snr_step_db=0.5))
    channel = run(world, 100)
    m, trend, snr, counted, reported = channel.T
    assert (m >= 0.5).all()
    assert (m <= 3.0).all()
    assert trend.std() == pytest.approx(0.01 / (1 - 0.8**2) ** 0.5, rel=0.1)
    assert snr.mean() == pytest.approx(10.0, abs=0.2)
    assert snr.std() == pytest.approx(0.5 / (1 - 0.95**2) ** 0.5, rel=0.1)
    assert (reported - snr).std() == pytest.approx(4.0, rel=0.15), "less what the ends of the range cut off"
    errors = (counted - loss_probability(m)) / np.sqrt(loss_probability(m) * (1 - loss_probability(m)) / 144)
    assert errors.mean() == pytest.approx(0.0, abs=0.1)
    assert errors.std() == pytest.approx(1.0, abs=0.1)


def test_at_the_end_of_its_range_m_turns() -> None:
    world = HarderWorld(authors_gain(), radio=Radio(trend_step=0.02))
    channel = np.array([[0.55, -0.1, 10.0, 0.3, 10.0]])
    after = world.channel_after(channel, np.zeros(1, np.int64), np.zeros((1, 4)))
    np.testing.assert_allclose(after[0, :2], [0.5, 0.09])


def test_a_move_costs_what_its_keys_and_values_take_on_the_link() -> None:
    weights = RewardWeights(quality=0.0, load=0.0, latency_per_ms=1.0)
    world = HarderWorld(authors_gain(), weights=weights, radio=Radio(bandwidth_hz=8e6), context_tokens=100.0)
    channel = np.array([[1.0, 0.0, 10.0 * np.log10(3.0), 0.1, 0.0]])
    stayed, moved = (world.rewards(channel, np.array([place]), np.array([7]))[0] for place in (7, 4))
    # 8 MHz at an SNR of 3 carry 2 MB/s; three layers of 100 tokens with 32 KiB each.
    assert stayed - moved == pytest.approx(1e3 * 3 * 100 * 32768 / 2e6 / 16)
    device_ms = world.costs.device_ms[7]
    assert -stayed == pytest.approx(device_ms + world.costs.hop_ms + 1e3 * world.costs.hidden_bytes / 2e6)


def test_weights_are_a_persons_to_set() -> None:
    energy = RewardWeights(quality=0.0, load=0.0, energy_per_j=2.0)
    world = HarderWorld(authors_gain(), weights=energy)
    channel, place = np.array([[1.0, 0.0, 10.0, 0.1, 0.0]]), np.array([3])
    assert world.costs.source_j is not None
    assert world.rewards(channel, place, place)[0] == pytest.approx(-2.0 * world.costs.source_j[3])


def test_energy_without_a_known_power_is_refused() -> None:
    costs = SplitCosts(
        splits=(1, 2), device_ms=(1.0, 2.0), source_j=None, hop_ms=0.0, hidden_bytes=2, kv_bytes_per_token_layer=4
    )
    with pytest.raises(ValueError, match="power is not known"):
        HarderWorld(authors_gain(), splits=(1, 2), costs=costs)
    world = HarderWorld(authors_gain(), splits=(1, 2), costs=costs, weights=RewardWeights())
    world.reset(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="costs of splits"):
        HarderWorld(authors_gain(), splits=(1, 3), costs=costs)


def test_history_is_the_last_observations_newest_first() -> None:
    world = HarderWorld(authors_gain(), frames=3)
    first = world.reset(np.random.default_rng(0), 5)
    np.testing.assert_array_equal(first, np.tile(first[:, :4], 3))
    second, _, _ = world.step(np.zeros(5, np.int64))
    third, _, _ = world.step(np.ones(5, np.int64))
    np.testing.assert_array_equal(third, np.concatenate([third[:, :4], second[:, :4], first[:, :4]], axis=1))


def test_what_is_measured_is_the_count_and_leads_back_to_the_channel() -> None:
    world = HarderWorld(authors_gain(), radio=Radio(sigma_at_0_db=5.0))
    channel = np.array([[1.3, 0.05, 9.0, 0.12, 7.0]])
    (seen,) = world.measured(channel, np.array([2]))
    assert (seen.split, seen.loss, seen.m) == (3, 0.12, None)
    assert seen.sigma == pytest.approx(5.0 * 10 ** (-7 / 20))
    back = world.channel_of(seen)
    assert back is not None
    assert back[1:] == pytest.approx([0.0, 7.0, 0.12, 7.0])
    assert loss_probability(back[0]) == pytest.approx(0.12)
    np.testing.assert_allclose(
        world.observe(channel, np.array([2]), np.random.default_rng(0)),
        [[seen.loss, seen.sigma, seen.goodput_bytes_per_s, 3.0]],
    )


def test_knowing_the_channel_is_worth_something() -> None:
    world = HarderWorld(authors_gain(), weights=HARDER_WEIGHTS)
    starts = Starts.drawn(world, 300, seed=0)
    optimum = solve(world, points=40)
    earned = play(world, optimum.decide, starts).returns.mean()
    others = [towards(place) for place in range(10)] + [always(0), at_random(np.random.default_rng(0))]
    assert earned > max(play(world, other, starts).returns.mean() for other in others)
    assert earned == pytest.approx(optimum.value(starts.channel, starts.place).mean(), abs=0.1)


def noise_sensitive(loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
    """Early splits suffer from noise."""
    return np.asarray(-0.03 * (10.0 - split) / 9.0 * np.square(sigma), np.float64)


def test_memory_is_worth_something_where_an_snr_is_reported_badly() -> None:
    earned = []
    for frames in (1, 4):
        world = HarderWorld(noise_sensitive, radio=Radio(sigma_at_0_db=5.0), frames=frames)
        starts = Starts.drawn(world, 1000, seed=0)
        optimum = solve(world, points=40)
        earned.append(play(world, planning_ahead(optimum, 0.6), starts).returns)
    better = earned[1] - earned[0]
    assert better.mean() > 4 * better.std() / 1000**0.5
    assert earned[1].mean() < play(world, optimum.decide, starts).returns.mean()


def test_planning_from_the_newest_observation_is_the_controllers_plan() -> None:
    world = HarderWorld(noise_sensitive, radio=Radio(sigma_at_0_db=5.0), horizon=1)
    starts = Starts.drawn(world, 100, seed=0)
    optimum = solve(world, points=40)
    planned = play(world, planning_ahead(optimum, 0.0), starts).places
    np.testing.assert_array_equal(planned, play(world, by(DpController(optimum)), starts).places)


@pytest.mark.parametrize(
    "wrong",
    [
        {"m_range": (0.2, 3.0)},
        {"snr_range_db": (5.0, 5.0)},
        {"trend_keeps": 1.0},
        {"counted_packets": 0},
        {"snr_step_db": -1.0},
    ],
)
def test_a_radio_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"m_range|snr_range_db|Radio"):
        Radio(**wrong)  # type: ignore[arg-type]
