"""Scores against a computation of their own: perplexity token by token, means position by position."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.receiver import Receiver
from edgectl.adaptive_bench.damage_replay import split_at
from edgectl.adaptive_bench.score import Offline, Scorer, mean_split, moves_of, reward
from planner.channel import Channel, ChannelState, erasing
from planner.types import LayerRange
from rl.reward import RewardWeights
from tests.fakes.fake_executor import VOCABULARY, FakeExecutor

LAYERS = 4
WINDOWS = np.random.default_rng(1).integers(0, VOCABULARY, (6, 8))
CHANNEL = Channel((ChannelState(loss=0.4), ChannelState()), seed=2)


def scorer(segment: int = 2, channel: Channel | None = CHANNEL) -> Scorer:
    executor = FakeExecutor(LAYERS, (LayerRange(0, LAYERS),), slots=1, context=16)
    return Scorer(Offline(executor, Receiver(), WINDOWS, segment), channel, "fp32")


def test_a_split_that_stays_does_what_it_does_in_every_segment() -> None:
    whole = scorer().under(((0, 2),))
    assert len(whole.segments) == 3
    assert whole.ppl == pytest.approx(math.exp(fmean(map(math.log, whole.segments))))
    assert whole.ppl != scorer().clean().ppl


def test_every_segment_suffers_the_same_positions() -> None:
    """The same windows twice over are two equal segments: damage is a function of the position in the segment."""
    executor = FakeExecutor(LAYERS, (LayerRange(0, LAYERS),), slots=1, context=16)
    windows = np.concatenate([WINDOWS[:2], WINDOWS[:2]])
    twice = Scorer(Offline(executor, Receiver(), windows, 2), CHANNEL, "fp32")
    first, second = twice.under(((0, 1), (5, 3))).segments
    assert first == second


def test_a_schedule_lies_between_the_splits_it_is_made_of() -> None:
    found = scorer(6)
    assert found.positions == 48
    assert found.under(((0, 1), (48, 3))) == found.under(((0, 1),))
    assert found.under(((0, 1), (8, 3))).ppl not in {found.under(((0, 1),)).ppl, found.under(((0, 3),)).ppl}


def test_without_damage_every_schedule_is_clean() -> None:
    for channel in (None, erasing(0.0)):
        found = scorer(channel=channel)
        assert found.under(((0, 1), (3, 2))).ppl == pytest.approx(found.clean().ppl)


def test_a_text_too_short_for_a_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="one at least"):
        scorer(7)


@given(
    st.sets(st.integers(1, 60), max_size=5)
    .map(sorted)
    .flatmap(
        lambda positions: st.lists(st.integers(1, 31), min_size=len(positions) + 1, max_size=len(positions) + 1).map(
            lambda splits: tuple(zip([0, *positions], splits, strict=True))
        )
    ),
    st.integers(1, 50),
)
def test_the_mean_split_is_that_of_every_position(schedule: tuple[tuple[int, int], ...], positions: int) -> None:
    expected = fmean(split_at(schedule, position) for position in range(positions))
    assert mean_split(schedule, positions) == pytest.approx(expected)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="one at least"):
        mean_split(((0, 2),), 0)


def test_moves_are_changes() -> None:
    assert moves_of(((0, 2),)) == 0
    assert moves_of(((0, 2), (5, 4), (9, 2))) == 2


def test_the_reward_is_the_papers_over_a_whole_run() -> None:
    weights = RewardWeights(quality=10.0, load=2.0)
    # Against 50 and 100: (50 - 60) / 50 and (100 - 60) / 100, on average 0.1; a quarter of 8 layers off the device.
    assert reward(60.0, {4: 50.0, 8: 100.0}, 6.0, weights) == pytest.approx(10 * 0.1 + 2 * 0.25)


def test_a_perplexity_that_is_no_number_is_not_averaged() -> None:
    weights = RewardWeights()
    assert math.isnan(reward(math.nan, {4: 50.0}, 4.0, weights))
    assert reward(60.0, {4: 50.0, 8: math.nan}, 6.0, weights) == reward(60.0, {4: 50.0, 8: 50.0}, 6.0, weights)
    with pytest.raises(ValueError, match="no split that stays"):
        reward(60.0, {4: math.nan}, 4.0, weights)
