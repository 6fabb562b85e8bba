"""Controllers that need no learning: what a learned policy is held against, and what serves where there is none.

Each satisfies `rl.controller.Controller`. Where they compare splits, a split is worth what it would earn per decision
if the channel stayed as it is seen (`rl.reward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rl.arrays import FloatArray, IntArray
from rl.controller import Controller, Observation, Proposal
from rl.optimal import Optimum
from rl.quality import Gain
from rl.reward import RewardWeights, split_reward
from rl.split_costs import SplitCosts

UNKNOWN = "loss is not known"


@dataclass(frozen=True, slots=True)
class StaticController:
    """One split, whatever the channel."""

    split: int
    splits: tuple[int, ...]
    name: str = "static"

    def __post_init__(self) -> None:
        place_of(self.split, self.splits)

    def propose(self, observation: Observation) -> Proposal:
        place_of(observation.split, self.splits)
        return Proposal(self.split, None, f"split {self.split} throughout")


@dataclass(slots=True)
class RandomController:
    """Any move, as likely as any other. The same generator gives the same proposals one after the other."""

    splits: tuple[int, ...]
    moves: tuple[int, ...]
    rng: np.random.Generator
    name: str = "random"

    def propose(self, observation: Observation) -> Proposal:
        move = self.moves[int(self.rng.integers(len(self.moves)))]
        place = place_of(observation.split, self.splits) + move
        return Proposal(self.splits[min(max(place, 0), len(self.splits) - 1)], None, f"moves by {move} at random")


@dataclass(frozen=True, slots=True)
class GreedyController:
    """The split with the highest reward for the channel as it is seen: a look-up in a table, or whatever gives gains.

    A sigma that is not known counts as none. Of splits that are worth the same the present one stays.
    """

    gain: Gain
    splits: tuple[int, ...]
    weights: RewardWeights = field(default_factory=RewardWeights)
    moves: tuple[int, ...] | None = None
    """By how many places it may move at once; None: anywhere."""
    name: str = "table"

    def propose(self, observation: Observation) -> Proposal:
        here = place_of(observation.split, self.splits)
        if observation.loss is None:
            return Proposal(observation.split, None, UNKNOWN)
        earned = self.earned(observation.loss, observation.sigma or 0.0)
        reach = _reach(here, self.moves, len(self.splits))
        best = int(reach[np.argmax(earned[reach])])
        gain = float(earned[best] - earned[here])
        if gain <= 0.0:
            return Proposal(observation.split, 0.0, f"no split in reach is worth more at loss {observation.loss:.3f}")
        return Proposal(self.splits[best], gain, f"worth {gain:.3f} more at loss {observation.loss:.3f}")

    def earned(self, loss: float, sigma: float) -> FloatArray:
        """(splits,): reward per decision of each."""
        layers = np.array(self.splits, np.float64)
        gain = self.gain(np.full(len(layers), loss), layers, np.full(len(layers), sigma))
        return split_reward(self.weights, gain, layers, self.splits[-1])


@dataclass(frozen=True, slots=True)
class HysteresisController:
    """Moves only where another controller expects more than `margin` per decision of it, so that a channel that
    trembles about a border does not move the split with it."""

    inner: Controller
    margin: float
    name: str = "hysteresis"

    @property
    def splits(self) -> tuple[int, ...]:
        return self.inner.splits

    def propose(self, observation: Observation) -> Proposal:
        proposal = self.inner.propose(observation)
        if proposal.split == observation.split or proposal.gain is None or proposal.gain > self.margin:
            return proposal
        return Proposal(observation.split, 0.0, f"{proposal.gain:.3f} does not exceed the margin of {self.margin:g}")


@dataclass(frozen=True, slots=True)
class DpController:
    """The first move of the best plan over a world's horizon from where the channel is seen to be, made anew each
    time."""

    optimum: Optimum
    name: str = "dp"

    @property
    def splits(self) -> tuple[int, ...]:
        return self.optimum.model.world.splits

    def propose(self, observation: Observation) -> Proposal:
        world = self.optimum.model.world
        here = place_of(observation.split, world.splits)
        channel = world.channel_of(observation)
        if channel is None:
            return Proposal(observation.split, None, UNKNOWN)
        worth = self.optimum.worth(channel[None], np.array([here]), world.horizon)[0]
        best = int(np.argmax(worth))
        if world.actions[best] == 0:
            return Proposal(observation.split, 0.0, "no plan is worth more than to stay")
        staying = self.optimum.model.at(self.optimum.staying, channel[None], np.array([here]))[0]
        gain = float(worth[best] - staying) / world.horizon
        split = world.splits[int(world.place_after(np.array([here]), np.array([best]))[0])]
        return Proposal(split, gain, f"the plan of {world.horizon} decisions is worth {gain:.3f} more each")


@dataclass(frozen=True, slots=True)
class PlannerController:
    """The exact planner, asked anew: the split with the least milliseconds per token.

    It knows devices and links and nothing of perplexity. Every split sends the same bytes, so what the radio does
    changes its times alike and its answer never: on a fading link it is a static split, the quickest one.
    """

    costs: SplitCosts
    name: str = "planner"

    @property
    def splits(self) -> tuple[int, ...]:
        return self.costs.splits

    def propose(self, observation: Observation) -> Proposal:
        here = place_of(observation.split, self.splits)
        rate = observation.goodput_bytes_per_s or np.inf
        token_ms = self.costs.token_ms(np.arange(len(self.splits)), np.full(len(self.splits), rate))
        token_ms = token_ms + max(0.0, (observation.rtt_ms or 0.0) - self.costs.hop_ms)
        best = int(np.argmin(token_ms))
        if token_ms[best] >= token_ms[here]:
            return Proposal(observation.split, None, f"{token_ms[here]:.1f} ms per token is the least")
        return Proposal(self.splits[best], None, f"{token_ms[best]:.1f} in place of {token_ms[here]:.1f} ms per token")


def place_of(split: int, splits: Sequence[int]) -> int:
    """Its index. Raises ValueError naming those that are known."""
    try:
        return splits.index(split)
    except ValueError:
        raise ValueError(f"split {split} is none of {', '.join(map(str, splits))}") from None


def _reach(here: int, moves: tuple[int, ...] | None, count: int) -> IntArray:
    """Places in reach, the present one first, so that it wins a draw; then the nearest."""
    places = np.arange(count) if moves is None else np.unique(np.clip(here + np.array([0, *moves]), 0, count - 1))
    return places[np.argsort(np.abs(places - here), kind="stable")]
