"""Grids of points, and the channel of each of their runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from edgectl.quality.points import (
    CLEAR_SHAPE,
    MAX_POINTS,
    ChannelKind,
    ModelKind,
    QualityPoint,
    Runs,
    channel_of,
    grid,
)
from rl.channel import THRESHOLD_SQUARED, loss_probability


def test_a_grid_has_every_combination_once_by_split() -> None:
    points = grid((4, 1, 4), (0.1, 0.0), (0.0, 2.0))
    assert points == tuple(
        QualityPoint(split, loss, sigma) for split in (1, 4) for loss in (0.0, 0.1) for sigma in (0.0, 2.0)
    )


def test_shapes_take_the_losses_place_and_snrs_the_sigmas() -> None:
    points = grid((2,), (), shapes=(0.5, 3.0), snrs_db=(10.0, 0.0))
    assert {point.m for point in points} == {0.5, 3.0}
    assert all(point.loss == pytest.approx(float(loss_probability(point.m or 0.0))) for point in points)
    assert [(point.sigma, point.snr_db) for point in points] == [(0.0, 10.0), (0.0, 0.0)] * 2


def test_fading_has_the_shape_that_loses_as_much() -> None:
    clear, faded = grid((2,), (0.0, 0.1), fading="nakagami")
    assert clear.m == CLEAR_SHAPE
    assert clear.is_clean
    assert not faded.is_clean
    assert float(loss_probability(faded.m or 0.0)) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"losses": (1.01,)}, "--loss 1.01 is no probability"),
        ({"losses": (-0.1,)}, "--loss -0.1 is no probability"),
        ({"losses": (math.nan,)}, "--loss nan is no probability"),
        ({"sigmas": (-1.0,)}, "--sigma -1"),
        ({"sigmas": (math.inf,)}, "--sigma inf"),
        ({"shapes": (0.49,)}, "--m 0.49: a Nakagami distribution has 0.5 or more"),
        ({"shapes": (math.nan,)}, "--m nan"),
        ({"snrs_db": (201.0,)}, "--snr-db 201"),
        ({"losses": (0.5,), "fading": "nakagami"}, "--loss 0.5 under fading"),
        ({"losses": ()}, "0 points"),
        ({"losses": np.linspace(0, 1, MAX_POINTS + 1).tolist()}, f"at most|1 to {MAX_POINTS}"),
    ],
)
def test_numbers_outside(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grid(**({"splits": (1,), "losses": (0.1,)} | arguments))


@pytest.mark.parametrize("change", [{"count": 0}, {"count": 1001}, {"seed": -1}, {"seed": 1 << 50}])
def test_runs_outside(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="are possible"):
        Runs(**change)


def test_a_channel_that_does_nothing_is_run_once() -> None:
    assert list(Runs(count=5).of(QualityPoint(1, 0.0))) == [0]
    assert list(Runs(count=5).of(QualityPoint(1, 0.0, sigma=1.0))) == [0, 1, 2, 3, 4]
    assert list(Runs(count=2).of(QualityPoint(1, 0.0, snr_db=3.0))) == [0, 1]


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 999), st.integers(0, 999))
def test_no_two_runs_share_a_seed(seed: int, other: int, run: int, another: int) -> None:
    point = QualityPoint(1, 0.1)
    one = channel_of(point, ChannelKind(), Runs(seed=seed), run, 10)
    two = channel_of(point, ChannelKind(), Runs(seed=other), another, 10)
    assert (one.seed == two.seed) == ((seed, run) == (other, another))


def test_runs_of_one_number_share_their_seed_at_all_points() -> None:
    seeds = {channel_of(point, ChannelKind(), Runs(), 3, 10).seed for point in grid((1, 4), (0.1, 0.2), (0.0, 1.0))}
    assert len(seeds) == 1


def test_a_channel_is_of_its_kind() -> None:
    kind = ChannelKind(
        granularity="packet", packet_bytes=64, interleaved=True, concealment="rescale", protection="repeat"
    )
    for m in (None, 1.0):
        channel = channel_of(QualityPoint(1, 0.1, 2.0, m), kind, Runs(), 0, 7)
        assert (channel.granularity, channel.packet_bytes, channel.interleaved) == ("packet", 64, True)
        assert (channel.concealment, channel.protection) == ("rescale", "repeat")
        assert len(channel.states) == (1 if m is None else 7)
    assert kind.mitigation == "rescale+repeat+interleaved"
    assert ChannelKind().mitigation == "zero"


def test_fading_gains_are_those_of_what_is_not_lost() -> None:
    point = QualityPoint(1, float(loss_probability(1.0)), 2.0, 1.0)
    channel = channel_of(point, ChannelKind(), Runs(), 0, 8192)
    gains = np.array([state.gain for state in channel.states])
    assert gains.min() ** 2 >= THRESHOLD_SQUARED
    # An exponential cut off from below has its mean further up by the threshold.
    assert np.mean(gains**2) == pytest.approx(1.0 + THRESHOLD_SQUARED, rel=0.05)
    assert {state.sigma for state in channel.states} == {2.0}
    assert all(state.loss == pytest.approx(point.loss) for state in channel.states)
    again = channel_of(point, ChannelKind(), Runs(), 0, 8192)
    assert again == channel
    assert channel_of(point, ChannelKind(), Runs(), 1, 8192).states != channel.states
    equalised = channel_of(point, ChannelKind(equalised=True), Runs(), 0, 8192)
    assert {state.gain for state in equalised.states} == {1.0}
    assert equalised.states[0].sigma == pytest.approx(2.0 / gains[0])


def test_the_wire_is_the_boundary_type_unless_it_is_named() -> None:
    assert ModelKind(boundary="fp32").wire == "fp32"
    assert ModelKind(codec="int8").wire == "int8"
