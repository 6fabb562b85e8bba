"""Damage against the kernels' own masks."""

from __future__ import annotations

import numpy as np

from agent.compute import kernels
from agent.compute.damage import damage
from planner.channel import Channel, ChannelState, erasing


def hidden(tokens: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(tokens, 64)).astype(np.float32)


def test_one_probability_throughout_is_the_kernels_mask() -> None:
    whole, oracle = hidden(20), hidden(20)
    damage(whole, erasing(0.3, 7), 4, 100)
    kernels.erase(oracle, 0.3, 7, 4, 100)
    np.testing.assert_array_equal(whole, oracle)


def test_a_state_counts_for_the_positions_it_holds_at() -> None:
    states = hidden(12)
    damage(states, Channel((ChannelState(), ChannelState(loss=1.0)), coherence_tokens=4), 4, 2)
    lost = [not row.any() for row in states]
    assert lost == [False] * 2 + [True] * 4 + [False] * 4 + [True] * 2
