"""Episodes played to their end by whoever decides, many at once, from starts that all are given alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rl.arrays import FloatArray, IntArray
from rl.controller import Controller
from rl.split_world import SplitWorld

Decide = Callable[[SplitWorld, FloatArray], IntArray]
"""From a world with episodes under way, and what is observed of them (n, frames * observed), to indices of actions
(n,). A learner's reads the observations alone; an oracle's may read `world.episodes`."""


@dataclass(frozen=True, eq=False)
class Starts:
    """Where n episodes begin, and the seed of what befalls them: everybody who is compared is given the same."""

    channel: FloatArray
    place: IntArray
    seed: int

    @classmethod
    def drawn(cls, world: SplitWorld, n: int, seed: int) -> Starts:
        rng = np.random.default_rng(seed)
        return cls(world.draw_channel(rng, n), world.draw_place(rng, n), seed)


@dataclass(frozen=True, eq=False)
class Played:
    """What n episodes came to."""

    rewards: FloatArray
    """(horizon, n)"""
    places: IntArray
    """(horizon + 1, n), where they began first."""
    channels: FloatArray
    """(horizon + 1, n, channel dimensions)"""

    @property
    def returns(self) -> FloatArray:
        """(n,): undiscounted sums."""
        return np.asarray(self.rewards.sum(axis=0), np.float64)

    @property
    def moves(self) -> float:
        """Of all decisions, those that changed the split."""
        return float(np.mean(np.diff(self.places, axis=0) != 0))


def play(world: SplitWorld, decide: Decide, starts: Starts) -> Played:
    """The same starts and the same decisions give the same episodes."""
    # The channel's own generator: who draws numbers to decide must not change what befalls him.
    seen = world.start(starts.channel, starts.place, np.random.default_rng([starts.seed, 1]))
    rewards, places, channels = [], [world.episodes.place], [world.episodes.channel]
    for _ in range(world.horizon):
        seen, reward, _ = world.step(decide(world, seen))
        rewards.append(reward)
        places.append(world.episodes.place)
        channels.append(world.episodes.channel)
    return Played(np.stack(rewards), np.stack(places), np.stack(channels))


def at_random(rng: np.random.Generator) -> Decide:
    """Every action as likely as any other."""
    return lambda world, seen: rng.integers(0, len(world.actions), len(seen))


def always(move: int) -> Decide:
    """The same move throughout."""
    return lambda world, seen: np.full(len(seen), world.actions.index(move))


def towards(place: int) -> Decide:
    """To the split with this index as fast as the moves allow, and no further: a static split."""
    return lambda world, seen: action_towards(world, world.episodes.place, np.full(len(seen), place))


def by(controller: Controller) -> Decide:
    """What a coordinator's controller proposes, as near as one move gets to it."""

    def decide(world: SplitWorld, seen: FloatArray) -> IntArray:
        now = world.episodes
        observations = world.measured(now.channel, now.place)
        wanted = [controller.propose(observation).split for observation in observations]
        return action_towards(world, now.place, np.searchsorted(world.splits, wanted))

    return decide


def action_towards(world: SplitWorld, place: IntArray, wanted: IntArray) -> IntArray:
    """Indices (n,) of the moves that come nearest to the wanted places (n,); of two, the one that the world lists
    first."""
    reached = np.stack([world.place_after(place, np.full(len(place), a)) for a in range(len(world.actions))])
    nearest: IntArray = np.argmin(np.abs(reached - wanted), axis=0)
    return nearest
