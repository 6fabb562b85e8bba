"""The best controllers that do not know how many steps are left: one action per state, and one split throughout.

A learner's policy sees no step counter, so this, not the finite-horizon optimum, is what it can reach. Finding the best
one of a finite horizon is hard in general; it is sought from several beginnings, and what is found is a lower bound,
with the finite-horizon optimum above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl.arrays import FloatArray, IntArray
from rl.optimal import GridModel
from rl.rollout import Decide, Starts, play, towards
from rl.split_world import SplitWorld

DISCOUNTS = (0.5, 0.8, 0.9, 0.99)
"""Of endless episodes whose optimal policies are beginnings too."""
_ENDLESS_STEPS = 200
_ROUNDS = 60
_SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.0)
"""Of the states that would gain by another action: how many take it at once."""
_LEAST_PROMISE = 1e-12


@dataclass(frozen=True, eq=False)
class Stationary:
    """One action per channel point of the grid and place."""

    model: GridModel
    actions: IntArray
    """(G, S)"""

    @property
    def decide(self) -> Decide:
        """Reads the channel itself, at its nearest point of the grid."""

        def best(world: SplitWorld, seen: FloatArray) -> IntArray:
            now = world.episodes
            chosen: IntArray = self.actions[nearest(self.model.axes, now.channel), now.place]
            return chosen

        return best


def best_stationary(model: GridModel) -> Stationary:
    """Sought by local improvement from the policies that are optimal with k steps to go and those of endless discounted
    episodes."""
    starts = model.start_shares()
    best, most = None, -np.inf
    for beginning in _beginnings(model):
        actions, earned = _improved(model, beginning, starts)
        if earned > most:
            best, most = actions, earned
    assert best is not None
    return Stationary(model, best)


def mean_return(model: GridModel, actions: IntArray, starts: FloatArray) -> float:
    """Of a whole episode on the grid, over starts (G, S) that sum to 1."""
    return float(np.sum(starts * _values(model, actions)[0]))


def best_static(world: SplitWorld, starts: Starts) -> tuple[int, float]:
    """Index of the split that earns most when it is gone to as fast as the moves allow, and its mean return."""
    earned = [float(play(world, towards(place), starts).returns.mean()) for place in range(len(world.splits))]
    best = int(np.argmax(earned))
    return best, earned[best]


def nearest(axes: tuple[FloatArray, ...], channel: FloatArray) -> IntArray:
    """(n,): flat index of the grid point that is nearest along each axis."""
    index = []
    for axis, value in zip(axes, channel.T, strict=True):
        middle = (axis[1:] + axis[:-1]) / 2
        index.append(np.searchsorted(middle, value))
    return np.asarray(np.ravel_multi_index(tuple(index), tuple(len(axis) for axis in axes)), np.int64)


def _beginnings(model: GridModel) -> list[IntArray]:
    """Optimal policies of other horizons."""
    found = []
    values = np.zeros(model.rewards.shape[:2])
    for _ in range(model.world.horizon):
        worth = model.worth(values)
        found.append(np.argmax(worth, axis=2))
        values = worth.max(axis=2)
    for discount in DISCOUNTS:
        values = np.zeros(model.rewards.shape[:2])
        for _ in range(_ENDLESS_STEPS):
            values = model.worth(discount * values).max(axis=2)
        found.append(np.argmax(model.worth(discount * values), axis=2))
    return found


def _values(model: GridModel, actions: IntArray) -> tuple[FloatArray, list[FloatArray]]:
    """Of the policy over a whole episode (G, S), and what each action is worth (G, S, A) with 1, 2, ... steps to go if
    the policy goes on from there."""
    values, worths = np.zeros(model.rewards.shape[:2]), []
    for _ in range(model.world.horizon):
        worths.append(model.worth(values))
        values = np.take_along_axis(worths[-1], actions[:, :, None], axis=2)[:, :, 0]
    return values, worths


def _improved(model: GridModel, actions: IntArray, starts: FloatArray) -> tuple[IntArray, float]:
    """States take the action that earns most over a whole episode, weighed by how often and when the policy comes by.
    That changes how it comes by, so where all at once do not help, only the most promising do."""
    earned = mean_return(model, actions, starts)
    for _ in range(_ROUNDS):
        score = _scores(model, actions, starts)
        present = np.take_along_axis(score, actions[:, :, None], axis=2)[:, :, 0]
        promise = score.max(axis=2) - present
        if promise.max() <= _LEAST_PROMISE:
            break
        for share in _SHARES:
            least = np.quantile(promise[promise > _LEAST_PROMISE], 1.0 - share)
            changed = np.where((promise >= least) & (promise > _LEAST_PROMISE), np.argmax(score, axis=2), actions)
            after = mean_return(model, changed, starts)
            if after > earned:
                actions, earned = changed, after
                break
        else:
            break
    return actions, earned


def _scores(model: GridModel, actions: IntArray, starts: FloatArray) -> FloatArray:
    """(G, S, A): what an action is worth in a state, summed over the steps at which the policy is there."""
    _, worths = _values(model, actions)
    there = starts
    score = np.zeros_like(model.rewards)
    for worth in reversed(worths):
        score += there[:, :, None] * worth
        there = _one_step_on(model, actions, there)
    return score


def _one_step_on(model: GridModel, actions: IntArray, there: FloatArray) -> FloatArray:
    """(G, S): where those who are `there` are after one step."""
    after = np.zeros_like(there)
    for matrix, places, chosen in model.shared:
        leaving = np.zeros_like(there)
        for place, action in zip(places.tolist(), chosen.tolist(), strict=True):
            leaving[:, model.reached[place, action]] += np.where(actions[:, place] == action, there[:, place], 0.0)
        after += matrix.T @ leaving
    return after
