"""The radio channel against scipy's distributions, its limits, and what its processes are on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from planner.channel import Channel
from rl.channel import (
    THRESHOLD_SQUARED,
    GilbertElliott,
    bursty_channel,
    fading_channel,
    loss_probability,
    m_of_loss,
    m_walk,
    nakagami_gain,
    noise_sigma,
    packet_of_element,
    received_gain,
    sampled_loss,
)

THRESHOLD = THRESHOLD_SQUARED**0.5


@pytest.mark.parametrize(("m", "omega"), [(0.5, 1.0), (1.0, 2.0), (2.3, 0.5), (3.0, 1.0)])
def test_gains_are_nakagami(m: float, omega: float) -> None:
    gains = nakagami_gain(m, omega, 20_000, np.random.default_rng(1))
    assert stats.kstest(gains, stats.nakagami(m, scale=np.sqrt(omega)).cdf).pvalue > 0.01
    assert np.mean(gains**2) == pytest.approx(omega, rel=0.05)


def test_its_limits_are_rayleigh_and_no_fading() -> None:
    rng = np.random.default_rng(2)
    assert stats.kstest(nakagami_gain(1.0, 1.0, 20_000, rng), stats.rayleigh(scale=0.5**0.5).cdf).pvalue > 0.01
    assert stats.kstest(nakagami_gain(0.5, 1.0, 20_000, rng), stats.halfnorm().cdf).pvalue > 0.01
    np.testing.assert_allclose(nakagami_gain(1e7, 1.0, 100, rng), 1.0, atol=1e-3)
    assert loss_probability(1e4) < 1e-100


@pytest.mark.parametrize("m", [0.5, 1.0, 2.7])
def test_what_is_received_is_above_the_threshold_and_nakagami_there(m: float) -> None:
    gains = received_gain(m, 20_000, np.random.default_rng(3))
    whole = stats.nakagami(m)
    lost = whole.cdf(THRESHOLD)
    assert gains.min() >= THRESHOLD
    assert stats.kstest(gains, lambda h: (whole.cdf(h) - lost) / (1 - lost)).pvalue > 0.01


def test_loss_is_the_chance_of_a_gain_below_the_threshold() -> None:
    for m in (0.5, 1.0, 1.5, 2.0, 3.0):
        assert loss_probability(m, 0.15, 1.3) == pytest.approx(stats.nakagami(m, scale=1.3**0.5).cdf(0.15**0.5))
        counted = sampled_loss(m, 100_000, np.random.default_rng(4))
        assert counted == pytest.approx(loss_probability(m), abs=4 * (0.25 / 100_000) ** 0.5)
    np.testing.assert_allclose(loss_probability([0.5, 1, 1.5, 2, 3]), [0.30, 0.139, 0.070, 0.037, 0.011], atol=2e-3)
    assert loss_probability(1.0) == pytest.approx(1 - np.exp(-0.15))


@given(st.floats(0.5, 200.0))
def test_m_of_loss_undoes_it(m: float) -> None:
    assert m_of_loss(loss_probability(m)) == pytest.approx(m, rel=1e-6)


@pytest.mark.parametrize("loss", [0.0, -0.1, 0.31, 1.0, np.nan])
def test_no_shape_loses_that(loss: float) -> None:
    with pytest.raises(ValueError, match="lose more than 0"):
        m_of_loss(loss)


@pytest.mark.parametrize("m", [0.4, -1.0, np.nan, np.inf])
def test_no_nakagami_has_such_an_m(m: float) -> None:
    with pytest.raises(ValueError, match=r"0\.5 or more"):
        loss_probability(m)
    with pytest.raises(ValueError, match=r"0\.5 or more"):
        nakagami_gain(m, 1.0, 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="mean square"):
        loss_probability(1.0, omega=0.0)


def test_an_snr_is_the_tokens_own() -> None:
    hidden = np.random.default_rng(5).normal(size=(3, 4096)) * np.array([[1.0], [2.0], [40.0]])
    sigma = noise_sigma(hidden, 13.0)
    np.testing.assert_allclose(10 * np.log10(np.mean(hidden**2, 1) / sigma**2), 13.0)
    np.testing.assert_allclose(sigma / sigma[0], [1, 2, 40], rtol=0.1)


def test_m_walks_as_its_step_says_and_stays_in_range() -> None:
    walk = m_walk(1.5, 20_000, np.random.default_rng(6), step=0.15)
    inner = (walk[:-1] > 1.2) & (walk[:-1] < 2.3)
    assert walk[0] == 1.5
    assert (walk.min(), walk.max()) == (0.5, 3.0)
    assert stats.kstest(np.diff(walk)[inner], stats.norm(scale=0.15).cdf).pvalue > 0.01


def test_bursts_are_as_long_and_as_many_as_they_say() -> None:
    bursts = GilbertElliott.of(0.2, 5.0)
    lost = bursts.losses(200_000, np.random.default_rng(7)) == 1.0
    edges = np.diff(np.concatenate([[0], lost.astype(int), [0]]))
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    assert bursts.mean_loss == pytest.approx(0.2)
    assert lost.mean() == pytest.approx(0.2, abs=0.01)
    assert lengths.mean() == pytest.approx(5.0, rel=0.03)
    assert np.mean(lengths == 1) == pytest.approx(0.2, abs=0.01), "lengths are geometric"


def test_states_that_cannot_be_are_refused() -> None:
    for wrong in ({"worsens": 1.5, "recovers": 0.1}, {"worsens": 0.0, "recovers": 0.0}):
        with pytest.raises(ValueError, match="GilbertElliott"):
            GilbertElliott(**wrong)
    with pytest.raises(ValueError, match="bursts"):
        GilbertElliott.of(1.0, 5.0)
    with pytest.raises(ValueError, match="probabilities"):
        GilbertElliott.of(0.9, 1.0)


@given(st.integers(1, 500), st.integers(1, 100))
def test_packets_are_the_fewest_and_none_is_too_full(count: int, per_packet: int) -> None:
    for interleaved in (False, True):
        packet = packet_of_element(count, per_packet, interleaved)
        sizes = np.bincount(packet)
        assert len(sizes) == -(-count // per_packet)
        assert sizes.max() <= per_packet
        assert sizes.min() >= 1
        if not interleaved:
            assert (np.diff(packet) >= 0).all()
        elif len(sizes) > 1:
            assert (np.diff(packet) != 0).all()


def test_a_fading_channel_is_equation_3_whole() -> None:
    channel = fading_channel(1.0, 500, np.random.default_rng(8), sigma=5.0, seed=9)
    assert channel.seed == 9
    assert {(state.loss, state.sigma, state.m) for state in channel.states} == {
        (float(loss_probability(1.0)), 5.0, 1.0)
    }
    gains = [state.gain for state in channel.states]
    assert min(gains) >= THRESHOLD
    assert gains == list(received_gain(1.0, 500, np.random.default_rng(8)))


def test_a_receiver_that_equalises_has_more_noise_where_the_gain_is_low() -> None:
    plain = fading_channel(1.0, 50, np.random.default_rng(8), sigma=5.0)
    fixed = fading_channel(1.0, 50, np.random.default_rng(8), sigma=5.0, equalised=True)
    assert {state.gain for state in fixed.states} == {1.0}
    np.testing.assert_allclose(
        [state.sigma for state in fixed.states], [state.sigma / state.gain for state in plain.states]
    )


def test_a_mean_snr_moves_with_the_square_of_the_gain() -> None:
    gains = received_gain(2.0, 20, np.random.default_rng(8))
    channel = fading_channel(2.0, 20, np.random.default_rng(8), snr_db=10.0)
    np.testing.assert_allclose([state.snr_db for state in channel.states], 10 + 20 * np.log10(gains))


def test_a_walk_of_m_is_one_state_each_and_keeps_what_is_done_about_losses() -> None:
    like = Channel(
        (*fading_channel(1.0, 1, np.random.default_rng(0)).states,),
        granularity="packet",
        packet_bytes=64,
        interleaved=True,
        concealment="lmmse",
        protection="int8",
    )
    walk = m_walk(1.0, 30, np.random.default_rng(1))
    channel = fading_channel(walk, 30, np.random.default_rng(2), coherence_tokens=16, plan=like)
    assert [state.m for state in channel.states] == list(walk)
    assert (channel.coherence_tokens, channel.granularity, channel.packet_bytes) == (16, "packet", 64)
    assert (channel.interleaved, channel.concealment, channel.protection) == (True, "lmmse", "int8")


def test_bursts_become_states() -> None:
    bursts = GilbertElliott.of(0.3, 4.0)
    channel = bursty_channel(bursts, 200, np.random.default_rng(1), seed=3)
    assert [state.loss for state in channel.states] == list(bursts.losses(200, np.random.default_rng(1)))
