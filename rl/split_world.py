"""Worlds in which a split point is moved as the channel changes, vectorised over episodes.

A world is two things: pure functions (how the channel goes on, what a move earns), which dynamic programming reads, and
n episodes under way at once, which learners step through. All episodes of a world have the same length.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rl.arrays import BoolArray, FloatArray, IntArray
from rl.channel import LEAST_M, MOST_M, loss_probability, m_of_loss
from rl.controller import Observation
from rl.quality import Gain
from rl.reward import RewardWeights, split_reward

ACTIONS_3 = (0, -1, 1)
ACTIONS_5 = (0, -1, 1, -2, 2)
ACTIONS_9 = (0, -1, 1, -2, 2, -3, 3, -4, 4)
"""By how many of its splits a world moves; one that would leave them is shortened to reach the edge."""


@dataclass
class Episodes:
    """n episodes under way."""

    rng: np.random.Generator
    channel: FloatArray
    """(n, channel dimensions)"""
    place: IntArray
    """(n,) index of the present split among the world's."""
    seen: list[FloatArray] = field(default_factory=list)
    """The last observations, newest first, each (n, observed numbers)."""
    steps: int = 0


class SplitWorld(ABC):
    """Episodes of moves. Subclasses say what the channel is, how it goes on, and what a move earns."""

    splits: tuple[int, ...]
    """Layers on the source, ascending."""
    actions: tuple[int, ...]
    horizon: int
    """Steps of an episode."""
    frames: int = 1
    """Observations that a learner is given at once, newest first; before the first there was the same."""
    goes_on: bool = False
    """Whether an episode's end is only where we stop looking; a learner then values what would follow."""
    quadrature: tuple[int, ...] = ()
    """One entry per standard normal number that `channel_after` takes: points that dynamic programming sums it over."""
    moves_change_channel: bool = True
    """Whether `channel_after` depends on the move."""
    observed: tuple[str, ...]
    """Names of the numbers of one observation; the last is always the split, in layers."""
    observed_low: tuple[float, ...]
    observed_high: tuple[float, ...]

    _episodes: Episodes | None = None

    @abstractmethod
    def draw_channel(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Where episodes begin: (n, channel dimensions)."""

    @abstractmethod
    def draw_place(self, rng: np.random.Generator, n: int) -> IntArray:
        """Indices of the splits that episodes begin with: (n,)."""

    @abstractmethod
    def channel_after(self, channel: FloatArray, moved: IntArray, noise: FloatArray) -> FloatArray:
        """The channel one step on; `moved` in splits, `noise` (n, len(quadrature))."""

    @abstractmethod
    def axes(self, points: int) -> tuple[FloatArray, ...]:
        """Grid of the channel for dynamic programming, one ascending axis per dimension."""

    @abstractmethod
    def rewards(self, channel: FloatArray, before: IntArray, after: IntArray) -> FloatArray:
        """Of moves between places, under the channel that follows them: (n,)."""

    @abstractmethod
    def observe(self, channel: FloatArray, place: IntArray, rng: np.random.Generator) -> FloatArray:
        """What a learner sees: (n, len(observed))."""

    @abstractmethod
    def measured(self, channel: FloatArray, place: IntArray) -> list[Observation]:
        """What a coordinator sees, for controllers: one per episode."""

    @abstractmethod
    def channel_of(self, observation: Observation) -> FloatArray | None:
        """The channel (dimensions,) that an observation tells of, as far as it does; None: it does not."""

    def place_after(self, place: IntArray, action: IntArray) -> IntArray:
        """Places (n,) after actions (n,), both given by their indices."""
        after: IntArray = np.clip(place + np.array(self.actions, np.int64)[action], 0, len(self.splits) - 1)
        return after

    def reset(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Begin n episodes; the same generator gives the same. Returns observations (n, frames * observed)."""
        return self.start(self.draw_channel(rng, n), self.draw_place(rng, n), rng)

    def start(self, channel: FloatArray, place: IntArray, rng: np.random.Generator) -> FloatArray:
        """Begin episodes where one says, for comparisons from common starts: as `reset` otherwise."""
        self._episodes = Episodes(rng, channel, place)
        return self._look(self._episodes)

    def step(self, actions: IntArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Move each episode by the action with its index: observations, rewards (n,), whether it is over (n,)."""
        now = self.episodes
        assert now.steps < self.horizon, "these episodes are over; reset begins others"
        after = self.place_after(now.place, np.asarray(actions, np.int64))
        noise = now.rng.standard_normal((len(after), len(self.quadrature)))
        channel = self.channel_after(now.channel, after - now.place, noise)
        rewards = self.rewards(channel, now.place, after)
        now.channel, now.place, now.steps = channel, after, now.steps + 1
        return self._look(now), rewards, np.full(len(after), now.steps == self.horizon)

    @property
    def episodes(self) -> Episodes:
        assert self._episodes is not None, "reset comes first"
        return self._episodes

    def _look(self, now: Episodes) -> FloatArray:
        newest = self.observe(now.channel, now.place, now.rng)
        now.seen = [newest, *now.seen][: self.frames]
        while len(now.seen) < self.frames:
            now.seen.append(newest)
        return np.concatenate(now.seen, axis=1)

    def layers(self, place: IntArray) -> FloatArray:
        """Splits at places, as numbers of layers."""
        return np.array(self.splits, np.float64)[place]


CaseName = Literal["L", "H", "A"]


@dataclass(frozen=True, slots=True)
class Case:
    """Where episodes begin: a range of losses, and of the splits as shares of their number."""

    losses: tuple[float, float]
    places: tuple[float, float]

    def place_range(self, count: int) -> tuple[int, int]:
        """Half-open range of places among so many splits; never empty."""
        start = min(math.floor(self.places[0] * count), count - 1)
        return start, max(math.ceil(self.places[1] * count), start + 1)


CASES: dict[CaseName, Case] = {
    "L": Case((0.01, 0.10), (0.0, 0.5)),
    "H": Case((0.20, 0.30), (0.5, 1.0)),
    "A": Case((0.01, 0.30), (0.0, 0.9)),
}
"""Low loss near the input, high loss far from it, and all, which with ten splits is the authors' 1 to 9 of 10. Ranges
of L and H are not published; these fit their descriptions."""


class AuthorsWorld(SplitWorld):
    """The authors' environment ("Adaptive Layer Splitting", arXiv 2406.02616, its released code): state (loss, split),
    five steps, and a loss that drifts a little with each move.

    What differs from their code, because it is a mistake there:
    - A step of +3 drifts by 0.9985; theirs has 0.9995, a slip.
    - The drift is 1 - 0.0005 per split moved towards the output, and symmetric; theirs is so but for rounding.
    - A move that would leave the range is shortened, and drifts by what it really moved.
    - Perplexity is never carried from one episode into the next, and a first step that stays earns what its split
      earns; theirs scores it as if perplexity were 0.
    - An episode that ends is terminal and bootstraps nothing.
    """

    observed = ("loss", "split")
    drift_per_split = 0.0005
    most_loss = 0.30

    def __init__(
        self,
        gain: Gain,
        *,
        case: CaseName = "A",
        actions: tuple[int, ...] = ACTIONS_9,
        splits: tuple[int, ...] = tuple(range(1, 11)),
        weights: RewardWeights | None = None,
        horizon: int = 5,
        sigma: float = 0.0,
    ) -> None:
        self.gain, self.case, self.actions, self.splits = gain, CASES[case], actions, splits
        self.weights = RewardWeights() if weights is None else weights
        self.horizon, self.sigma = horizon, sigma
        self.observed_low = (0.0, float(splits[0]))
        self.observed_high = (self.most_loss, float(splits[-1]))

    def draw_channel(self, rng: np.random.Generator, n: int) -> FloatArray:
        return rng.uniform(*self.case.losses, (n, 1))

    def draw_place(self, rng: np.random.Generator, n: int) -> IntArray:
        return rng.integers(*self.case.place_range(len(self.splits)), n)

    def channel_after(self, channel: FloatArray, moved: IntArray, noise: FloatArray) -> FloatArray:
        return np.clip(channel * (1.0 - self.drift_per_split * moved[:, None]), 0.0, self.most_loss)

    def axes(self, points: int) -> tuple[FloatArray, ...]:
        return (np.linspace(0.0, self.most_loss, points),)

    def rewards(self, channel: FloatArray, before: IntArray, after: IntArray) -> FloatArray:
        layers = self.layers(after)
        gain = self.gain(channel[:, 0], layers, np.full(len(layers), self.sigma))
        return split_reward(self.weights, gain, layers, self.splits[-1])

    def observe(self, channel: FloatArray, place: IntArray, rng: np.random.Generator) -> FloatArray:
        return np.stack([channel[:, 0], self.layers(place)], axis=1)

    def channel_of(self, observation: Observation) -> FloatArray | None:
        return None if observation.loss is None else np.array([observation.loss])

    def measured(self, channel: FloatArray, place: IntArray) -> list[Observation]:
        return [
            Observation(self.splits[at], loss=float(loss), sigma=self.sigma)
            for at, loss in zip(place.tolist(), channel[:, 0], strict=True)
        ]


class ChannelWorld(SplitWorld):
    """The paper's own state (sigma, m, l): the Nakagami shape m walks, the loss follows from it (equation 5), and sigma
    stays what the episode began with."""

    observed = ("sigma", "m", "split")
    quadrature = (15,)
    moves_change_channel = False

    def __init__(
        self,
        gain: Gain,
        *,
        sigmas: tuple[float, ...] = (0.0,),
        walk: float = 0.15,
        actions: tuple[int, ...] = ACTIONS_9,
        splits: tuple[int, ...] = tuple(range(1, 11)),
        weights: RewardWeights | None = None,
        horizon: int = 5,
        m_range: tuple[float, float] = (LEAST_M, MOST_M),
    ) -> None:
        self.gain, self.sigmas, self.walk, self.actions, self.splits = gain, sigmas, walk, actions, splits
        self.weights = RewardWeights() if weights is None else weights
        self.horizon, self.m_range = horizon, m_range
        self.observed_low = (min(sigmas), m_range[0], float(splits[0]))
        self.observed_high = (max(sigmas), m_range[1], float(splits[-1]))

    def draw_channel(self, rng: np.random.Generator, n: int) -> FloatArray:
        return np.stack([rng.choice(self.sigmas, n), rng.uniform(*self.m_range, n)], axis=1)

    def draw_place(self, rng: np.random.Generator, n: int) -> IntArray:
        return rng.integers(0, len(self.splits), n)

    def channel_after(self, channel: FloatArray, moved: IntArray, noise: FloatArray) -> FloatArray:
        m = np.clip(channel[:, 1] + self.walk * noise[:, 0], *self.m_range)
        return np.stack([channel[:, 0], m], axis=1)

    def axes(self, points: int) -> tuple[FloatArray, ...]:
        return np.array(sorted(set(self.sigmas))), np.linspace(*self.m_range, points)

    def rewards(self, channel: FloatArray, before: IntArray, after: IntArray) -> FloatArray:
        layers = self.layers(after)
        gain = self.gain(loss_probability(channel[:, 1]), layers, channel[:, 0])
        return split_reward(self.weights, gain, layers, self.splits[-1])

    def observe(self, channel: FloatArray, place: IntArray, rng: np.random.Generator) -> FloatArray:
        return np.concatenate([channel, self.layers(place)[:, None]], axis=1)

    def channel_of(self, observation: Observation) -> FloatArray | None:
        m = shape_of(observation, self.m_range)
        return None if m is None else np.array([observation.sigma or 0.0, m])

    def measured(self, channel: FloatArray, place: IntArray) -> list[Observation]:
        losses = loss_probability(channel[:, 1])
        return [
            Observation(self.splits[at], loss=float(loss), sigma=float(sigma), m=float(m))
            for at, loss, (sigma, m) in zip(place.tolist(), losses, channel, strict=True)
        ]


def shape_of(observation: Observation, m_range: tuple[float, float]) -> float | None:
    """The Nakagami shape that is observed, or that the observed loss has; None where neither is known."""
    if observation.m is not None:
        return float(np.clip(observation.m, *m_range))
    if observation.loss is None:
        return None
    least, most = (float(loss_probability(m)) for m in reversed(m_range))
    return float(m_of_loss(np.clip(observation.loss, least, most)))
