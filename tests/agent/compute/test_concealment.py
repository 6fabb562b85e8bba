"""Each concealment against its definition, and in the order in which theory puts them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.concealment import conceal, possible
from planner.channel import ChannelState, Concealment
from tests.fakes.calibrations import calibration, related_states

SIZE = 64
STATES = related_states(400, SIZE, 5)
MASK = np.random.default_rng(3).random(STATES.shape) < 0.2
KNOWN = calibration(4, SIZE)
LOSSY = ChannelState(loss=0.2)


def concealed(
    how: Concealment, state: ChannelState = LOSSY, arrived: NDArray[np.float32] = STATES
) -> NDArray[np.float32]:
    values = arrived.copy()
    values[MASK] = np.nan  # Nothing may look at what was lost.
    conceal(values, MASK, how, state, survival=0.8, calibration=KNOWN)
    return values


def error(values: NDArray[np.float32], truth: NDArray[np.float32] = STATES) -> float:
    """Of what was lost, in units of each element's variance."""
    return float((((values - truth) / STATES.std(0))[MASK] ** 2).mean())


def test_zero_rescale_and_mean() -> None:
    np.testing.assert_array_equal(concealed("zero"), np.where(MASK, 0, STATES))
    np.testing.assert_array_equal(concealed("rescale"), np.where(MASK, 0, STATES * np.float32(1.25)))
    np.testing.assert_array_equal(concealed("mean"), np.where(MASK, KNOWN.mean, STATES))
    half = concealed("mean", ChannelState(loss=0.2, gain=0.5))
    np.testing.assert_array_equal(half, np.where(MASK, KNOWN.mean / 2, STATES))


def test_the_token_before_is_repeated_as_often_as_it_takes() -> None:
    values = concealed("previous")
    expected = KNOWN.mean.copy()
    for token, lost in enumerate(MASK):
        expected = np.where(lost, expected, STATES[token])
        np.testing.assert_array_equal(values[token], expected)
    two = STATES[:2].copy()
    conceal(two, np.ones((2, SIZE), np.bool_), "previous", LOSSY, before=STATES[9])
    np.testing.assert_array_equal(two, STATES[[9, 9]])
    conceal(two, np.ones((2, SIZE), np.bool_), "previous", LOSSY)
    assert not two.any()


def test_the_more_is_known_the_less_is_wrong() -> None:
    wrong = [error(concealed(how)) for how in ("zero", "mean", "lmmse")]
    assert wrong[0] > wrong[1] > 5 * wrong[2]
    assert error(concealed("previous")) > 1.5 * wrong[1], "tokens are independent here"


@pytest.mark.parametrize("gain", [1.0, 0.3])
@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_lmmse_knows_of_gain_and_noise(gain: float, sigma: float) -> None:
    state = ChannelState(loss=0.2, gain=gain, sigma=sigma)
    noise = sigma * np.random.default_rng(8).normal(size=STATES.shape)
    arrived = (gain * STATES + noise).astype(np.float32)
    sent = np.float32(gain) * STATES
    informed = error(concealed("lmmse", state, arrived), sent)
    ignorant = error(concealed("lmmse", LOSSY, arrived), sent)
    assert informed <= error(concealed("mean", state, arrived), sent)
    assert informed <= 1.001 * ignorant
    if sigma:
        assert informed < 0.7 * ignorant


def test_noise_counts_in_units_of_what_was_sent() -> None:
    arrived = np.float32(0.25) * STATES
    expected = arrived.copy()
    kernels.conceal(expected, MASK, np.float32(0.25) * KNOWN.mean, *KNOWN.knowledge(64.0))
    values = concealed("lmmse", ChannelState(loss=0.2, gain=0.25, sigma=2.0), arrived)
    np.testing.assert_array_equal(values, expected)


def test_an_snr_is_noise_too() -> None:
    power = float((STATES**2).mean())
    noise = np.sqrt(power / 10) * np.random.default_rng(8).normal(size=STATES.shape)
    arrived = (STATES + noise).astype(np.float32)
    informed, ignorant = (
        error(concealed("lmmse", state, arrived)) for state in (ChannelState(loss=0.2, snr_db=10.0), LOSSY)
    )
    assert informed < 0.7 * ignorant


def test_a_faded_token_is_nothing() -> None:
    state = ChannelState(loss=0.2, gain=0.0, sigma=1.0)
    assert not concealed("lmmse", state, np.zeros_like(STATES))[MASK].any()


def test_without_a_calibration_what_came_is_rescaled() -> None:
    assert [possible(how, None) for how in ("zero", "previous", "mean", "lmmse")] == [
        "zero",
        "previous",
        "rescale",
        "rescale",
    ]
    assert possible("lmmse", KNOWN) == "lmmse"
