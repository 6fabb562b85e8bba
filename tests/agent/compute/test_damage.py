"""Damage against the kernels' own masks and numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.damage import damage, lost, runs
from agent.compute.packets import packets_per_token, protected_elements
from planner.channel import Channel, ChannelState, Concealment, Protection, erasing
from tests.fakes.calibrations import calibration, related_states

SIZE = 64
KNOWN = calibration(4, SIZE)


def hidden(tokens: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(tokens, SIZE)).astype(np.float32)


def damaged(values: NDArray[np.float32], channel: Channel, position: int = 0, **options: Any) -> NDArray[np.float32]:
    out: NDArray[np.float32] = values.copy()
    damage(out, channel, 4, position, **options)
    return out


def test_one_probability_throughout_is_the_kernels_mask() -> None:
    oracle = hidden(20)
    kernels.erase(oracle, 0.3, 7, 4, 100)
    np.testing.assert_array_equal(damaged(hidden(20), erasing(0.3, 7), 100), oracle)


def test_a_state_counts_for_the_positions_it_holds_at() -> None:
    states = damaged(hidden(12), Channel((ChannelState(), ChannelState(loss=1.0)), coherence_tokens=4), 2)
    assert [not row.any() for row in states] == [False] * 2 + [True] * 4 + [False] * 4 + [True] * 2


@pytest.mark.parametrize("concealment", ["zero", "rescale", "mean", "previous", "lmmse"])
@pytest.mark.parametrize("protection", ["none", "int8"])
def test_a_channel_that_breaks_numbers_warns_nobody(concealment: Concealment, protection: Protection) -> None:
    for state in (ChannelState(gain=1e300, loss=0.5), ChannelState(sigma=1e300, loss=0.5), ChannelState(snr_db=-200)):
        broken = Channel((state, ChannelState()), concealment=concealment, protection=protection)
        values = damaged(hidden(6), broken, calibration=KNOWN)
        np.testing.assert_array_equal(values[1::2], hidden(6)[1::2])


CHANNELS = [
    Channel((ChannelState(loss=0.3),), seed=5, concealment="rescale"),
    Channel((ChannelState(loss=0.3, gain=0.5, sigma=2.0), ChannelState(), ChannelState(snr_db=3.0)), seed=6),
    Channel(tuple(ChannelState(loss=0.1 * k, gain=1.1, snr_db=k) for k in range(5)), coherence_tokens=2),
    Channel((ChannelState(loss=0.4),), granularity="packet", packet_bytes=64, concealment="rescale"),
    Channel((ChannelState(loss=0.4, sigma=1.0),) * 3, granularity="packet", packet_bytes=64, interleaved=True),
    Channel((ChannelState(loss=0.3, sigma=0.1), ChannelState(snr_db=20)), concealment="lmmse", protection="repeat"),
    Channel((ChannelState(loss=0.3),), granularity="packet", packet_bytes=64, concealment="lmmse"),
    Channel((ChannelState(loss=0.5),), concealment="mean", protection="int8"),
]


@pytest.mark.parametrize("channel", CHANNELS)
@given(cuts=st.lists(st.integers(1, 19), max_size=4))
def test_nothing_depends_on_the_chunks(channel: Channel, cuts: list[int]) -> None:
    values = related_states(20, SIZE, 3)
    whole = damaged(values, channel, 30, calibration=KNOWN)
    edges = [0, *sorted(set(cuts)), 20]
    parts = [damaged(values[a:b], channel, 30 + a, calibration=KNOWN) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_faded_token_is_gain_times_it_and_noise() -> None:
    channel = Channel((ChannelState(gain=0.25, sigma=3.0),), seed=9)
    noise = np.zeros((20, SIZE), np.float32)
    kernels.add_noise(noise, 3.0, 9, 4, 7)
    np.testing.assert_array_equal(damaged(hidden(20), channel, 7), hidden(20) * np.float32(0.25) + noise)


def test_an_snr_counts_by_the_tokens_own_energy() -> None:
    values = np.random.default_rng(2).normal(size=(40, 4096)).astype(np.float32)
    values *= np.logspace(-2, 3, 40, dtype=np.float32)[:, None]
    for snr_db, gain in ((10.0, 1.0), (0.0, 0.3)):
        got = damaged(values, Channel((ChannelState(snr_db=snr_db, gain=gain),)))
        signal = np.float32(gain) * values
        measured = (signal.astype(np.float64) ** 2).mean(1) / ((got - signal).astype(np.float64) ** 2).mean(1)
        np.testing.assert_allclose(10 * np.log10(measured), snr_db, atol=0.5)


def test_a_packet_is_lost_whole_or_not_at_all() -> None:
    channel = Channel((ChannelState(loss=0.5),), granularity="packet", packet_bytes=64)
    values = np.ones((2000, SIZE), np.float32)
    for codec, elements in (("fp32", 16), ("fp16", 32), ("int8", 32)):
        shares = damaged(values, channel, codec=codec).reshape(2000, -1, elements)
        whole = shares.any(2)
        np.testing.assert_array_equal(shares.all(2), whole)
        assert abs(whole.mean() - 0.5) < 0.05
    together = Channel((ChannelState(loss=0.5),), granularity="packet")
    assert set(damaged(values, together).sum(1)) == {0.0, float(SIZE)}


def test_interleaved_packets_lose_as_much() -> None:
    channel = Channel((ChannelState(loss=0.3),), granularity="packet", packet_bytes=64, interleaved=True)
    mask = lost(0.3, channel, (4, 0), (3000, SIZE), codec="fp32")
    np.testing.assert_array_equal(mask, np.tile(mask[:, :4], 16))
    assert abs(mask.mean() - 0.3) < 0.02


@pytest.mark.parametrize("granularity", ["element", "packet"])
def test_rescaling_keeps_the_mean(granularity: Any) -> None:
    state = ChannelState(loss=0.25)
    channel = Channel((state,), granularity=granularity, packet_bytes=64, concealment="rescale")
    got = damaged(np.ones((4000, SIZE), np.float32), channel)
    assert set(np.unique(got)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(got.mean() - 1) < 0.02
    assert not damaged(hidden(3), Channel((ChannelState(loss=1.0),), concealment="rescale")).any()


def test_runs_are_as_long_as_they_can_be() -> None:
    bad, good = ChannelState(loss=0.5), ChannelState()
    assert list(runs(Channel((good,)), 5, 9)) == [(0, 9, good)]
    two = Channel((bad, bad, good), coherence_tokens=2)
    assert list(runs(two, 3, 8)) == [(0, 1, bad), (1, 3, good), (3, 7, bad), (7, 8, good)]


def test_a_clean_channel_leaves_every_bit() -> None:
    odd = np.array([[np.nan, -0.0, np.inf, 1e-40] * 16], np.float32)
    np.testing.assert_array_equal(damaged(odd, Channel((ChannelState(),))).view(np.uint32), odd.view(np.uint32))


@pytest.mark.parametrize("granularity", ["element", "packet"])
@pytest.mark.parametrize("protection", ["repeat", "int8"])
def test_protected_elements_are_lost_only_when_both_copies_are(granularity: Any, protection: Protection) -> None:
    state = ChannelState(loss=0.3)
    channel = Channel((state,), 3, granularity=granularity, packet_bytes=64, protection=protection)
    values = related_states(4000, SIZE, 3)
    copied = KNOWN.strongest(protected_elements(SIZE, "fp16", channel))
    assert len(copied) >= 2
    assert packets_per_token(SIZE, "fp16", channel) == 3
    mask = lost(0.3, channel, (4, 0), values.shape, copied=copied)
    got = damaged(values, channel, calibration=KNOWN)
    rest = np.setdiff1d(np.arange(SIZE), copied)
    np.testing.assert_array_equal(got[:, rest], np.where(mask[:, rest], 0, values[:, rest]))
    original, copy = mask[:, copied], mask[:, SIZE:]
    assert not got[:, copied][original & copy].any()
    np.testing.assert_array_equal(got[:, copied][~original], values[:, copied][~original])
    by_copy = original & ~copy
    stand_in = np.ascontiguousarray(values[:, copied])
    if protection == "int8":
        stand_in = kernels.unpack(kernels.pack(stand_in, "int8"), "int8", stand_in.shape)
    np.testing.assert_array_equal(got[:, copied][by_copy], stand_in[by_copy])
    assert abs((original & copy).mean() - 0.09) < 0.02


@pytest.mark.parametrize(
    ("options", "loss_of_both"),
    [({}, 0.09), ({"granularity": "packet", "packet_bytes": 64}, 0.09), ({"granularity": "packet"}, 0.3)],
)
def test_protected_elements_are_rescaled_by_what_comes_of_them(options: Any, loss_of_both: float) -> None:
    channel = Channel((ChannelState(loss=0.3),), 3, concealment="rescale", protection="repeat", **options)
    values = np.ones((3000, SIZE), np.float32)
    got = damaged(values, channel, calibration=KNOWN)
    copied = KNOWN.strongest(protected_elements(SIZE, "fp16", channel))
    rest = np.setdiff1d(np.arange(SIZE), copied)
    np.testing.assert_allclose(got[:, copied].max(), 1 / (1 - loss_of_both), rtol=1e-6)
    np.testing.assert_allclose(got[:, rest].max(), 1 / 0.7, rtol=1e-6)
    np.testing.assert_allclose([got[:, copied].mean(), got[:, rest].mean()], 1, atol=0.06)


def test_protection_changes_nothing_but_what_is_protected() -> None:
    channels = [Channel((ChannelState(loss=0.3, sigma=1.0, gain=0.5),), 3, protection=p) for p in ("none", "repeat")]
    plain, protected = (damaged(related_states(50, SIZE, 3), channel, calibration=KNOWN) for channel in channels)
    rest = np.setdiff1d(np.arange(SIZE), KNOWN.strongest(protected_elements(SIZE, "fp16", channels[1])))
    np.testing.assert_array_equal(plain[:, rest], protected[:, rest])
    assert not np.array_equal(plain, protected)


def test_without_a_calibration_nothing_is_protected_and_what_came_is_rescaled() -> None:
    wanted = Channel((ChannelState(loss=0.3),), concealment="lmmse", protection="repeat")
    had = Channel((ChannelState(loss=0.3),), concealment="rescale")
    np.testing.assert_array_equal(damaged(hidden(9), wanted), damaged(hidden(9), had))


def test_previous_goes_on_over_states_and_chunks() -> None:
    channel = Channel((ChannelState(loss=1.0), ChannelState(), ChannelState(loss=1.0)), concealment="previous")
    got = damaged(hidden(6), channel, before=hidden(9)[8])
    expected = [hidden(9)[8], *(hidden(6)[k] for k in (1, 1, 1, 4, 4))]
    np.testing.assert_array_equal(got, expected)
