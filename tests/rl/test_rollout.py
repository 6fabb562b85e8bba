"""Playing episodes: common starts, fair luck, and deciding by a controller."""

from __future__ import annotations

import numpy as np

from rl.authors_table import authors_gain
from rl.controller import Observation, Proposal
from rl.rollout import Starts, always, at_random, by, play, towards
from rl.split_world import ACTIONS_3, ACTIONS_9, AuthorsWorld, ChannelWorld


class SendTo:
    """Proposes one split, whatever it sees."""

    name = "send-to"
    splits = tuple(range(1, 11))

    def __init__(self, split: int) -> None:
        self.split = split

    def propose(self, observation: Observation) -> Proposal:
        return Proposal(self.split)


def test_what_befalls_an_episode_is_the_same_whoever_decides() -> None:
    world = ChannelWorld(authors_gain())
    starts = Starts.drawn(world, 50, seed=1)
    stayed, moved = (play(world, decide, starts) for decide in (always(0), at_random(np.random.default_rng(2))))
    np.testing.assert_array_equal(stayed.channels, moved.channels)
    assert stayed.moves == 0.0
    assert moved.moves > 0.5
    assert (stayed.rewards != moved.rewards).any()
    np.testing.assert_array_equal(stayed.returns, stayed.rewards.sum(0))


def test_a_static_split_is_gone_to_as_fast_as_moves_allow() -> None:
    for actions, places in ((ACTIONS_3, [9, 8, 7, 6, 5, 4]), (ACTIONS_9, [9, 5, 2, 2, 2, 2])):
        world = AuthorsWorld(authors_gain(), actions=actions)
        starts = Starts(np.array([[0.1]]), np.array([9]), seed=0)
        assert play(world, towards(2), starts).places[:, 0].tolist() == places
        assert play(world, by(SendTo(3)), starts).places[:, 0].tolist() == places


def test_starts_are_drawn_from_their_seed() -> None:
    world = AuthorsWorld(authors_gain())
    a, b = Starts.drawn(world, 9, seed=1), Starts.drawn(world, 9, seed=1)
    np.testing.assert_array_equal(a.channel, b.channel)
    np.testing.assert_array_equal(a.place, b.place)
