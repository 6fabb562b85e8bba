"""What the best possible controller earns: exact dynamic programming over a world's channel on a grid.

The channel is continuous; its grid is read linearly between the points, and what is normal in its course is integrated
by Gauss-Hermite quadrature. Values are exact where the world is deterministic and linear between the points, and
converge with the grid elsewhere. Small cases are held against enumerating everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from rl.arrays import FloatArray, IntArray
from rl.grid import corners
from rl.rollout import Decide, Starts
from rl.split_world import SplitWorld

_STARTS = 20_000


@dataclass(frozen=True, eq=False)
class GridModel:
    """A world on its grid: G channel points, S places, A actions."""

    world: SplitWorld
    axes: tuple[FloatArray, ...]
    rewards: FloatArray
    """(G, S, A): expected over what the channel does."""
    reached: IntArray
    """(S, A): places."""
    shared: tuple[tuple[Any, IntArray, IntArray], ...]
    """Each transition matrix, sparse (G, G) with rows that sum to 1, and the places and actions that it is for."""

    @classmethod
    def of(cls, world: SplitWorld, points: int = 121) -> GridModel:
        """`points` per axis of the channel that has no few values of its own."""
        axes = world.axes(points)
        grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
        nodes, weights = gauss_hermite(world.quadrature)
        places = np.arange(len(world.splits))
        reached = np.stack(
            [world.place_after(places, np.full(len(places), action)) for action in range(len(world.actions))], axis=1
        )
        moved = reached - places[:, None]
        rewards = np.zeros((len(grid), *reached.shape))
        shared: list[tuple[Any, IntArray, IntArray]] = []
        kinds = [moved == by for by in np.unique(moved)] if world.moves_change_channel else [np.full(moved.shape, True)]
        for is_this in kinds:
            after = _followers(world, grid, int(moved[is_this][0]), nodes)
            at, actions = np.nonzero(is_this)
            shared.append((_matrix(axes, after, weights, len(grid)), at, actions))
            for place, action in zip(at.tolist(), actions.tolist(), strict=True):
                earned = world.rewards(
                    after.reshape(-1, grid.shape[1]),
                    np.full(after.shape[0] * after.shape[1], place),
                    np.full(after.shape[0] * after.shape[1], reached[place, action]),
                )
                rewards[:, place, action] = earned.reshape(after.shape[:2]) @ weights
        return cls(world, axes, rewards, reached, tuple(shared))

    def worth(self, following: FloatArray) -> FloatArray:
        """(G, S, A): what an action earns, and the values (G, S) of where it leads."""
        result: FloatArray = self.rewards.copy()
        for matrix, places, actions in self.shared:
            result[:, places, actions] += (matrix @ following)[:, self.reached[places, actions]]
        return result

    def at(self, values: FloatArray, channel: FloatArray, place: IntArray) -> FloatArray:
        """(n, ...): values (G, S, ...) read at channels (n, dimensions) and places (n,), linear between points."""
        shape = tuple(len(axis) for axis in self.axes)
        read = np.zeros((len(place), *values.shape[2:]))
        for index, weight in corners(self.axes, *channel.T):
            found = values[np.ravel_multi_index(index, shape), place]
            read += weight.reshape(-1, *(1,) * (values.ndim - 2)) * found
        return read

    def start_shares(self, seed: int = 0) -> FloatArray:
        """(G, S): how episodes begin, from many drawn starts; sums to 1."""
        starts = Starts.drawn(self.world, _STARTS, seed)
        shape = tuple(len(axis) for axis in self.axes)
        shares = np.zeros((int(np.prod(shape)), len(self.reached)))
        for index, weight in corners(self.axes, *starts.channel.T):
            np.add.at(shares, (np.ravel_multi_index(index, shape), starts.place), weight)
        shares /= _STARTS
        return shares


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best controller that knows how many steps are left."""

    model: GridModel
    values: tuple[FloatArray, ...]
    """(G, S) each, with 0, 1, ... steps to go."""
    worths: tuple[FloatArray, ...]
    """(G, S, A) each, of every action with 1, 2, ... steps to go."""
    staying: FloatArray
    """(G, S): the expected return of whole episodes without a move."""

    def value(self, channel: FloatArray, place: IntArray) -> FloatArray:
        """(n,): the expected return of whole episodes."""
        return self.model.at(self.values[-1], channel, place)

    def worth(self, channel: FloatArray, place: IntArray, to_go: int) -> FloatArray:
        """(n, A): of each action, itself and what follows, with `to_go` steps left."""
        return self.model.at(self.worths[to_go - 1], channel, place)

    @property
    def decide(self) -> Decide:
        """Knows the channel itself and the steps that are left."""

        def best(world: SplitWorld, seen: FloatArray) -> IntArray:
            now = world.episodes
            actions: IntArray = np.argmax(self.worth(now.channel, now.place, world.horizon - now.steps), axis=1)
            return actions

        return best


def solve(world: SplitWorld, points: int = 121) -> Optimum:
    """Backward from the last step: V_0 = 0, V_k(c, l) = max_a E[r + V_(k-1)(c', l')]. Staying must be an action."""
    model = GridModel.of(world, points)
    values, worths = [np.zeros(model.rewards.shape[:2])], []
    stay, staying = world.actions.index(0), np.zeros_like(values[0])
    for _ in range(world.horizon):
        worths.append(model.worth(values[-1]))
        values.append(worths[-1].max(axis=2))
        staying = model.worth(staying)[:, :, stay]
    return Optimum(model, tuple(values), tuple(worths), staying)


def gauss_hermite(points: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Nodes (Q, dimensions) and weights (Q,), which sum to 1, of independent standard normal numbers, with so many
    points for each."""
    rules = [np.polynomial.hermite_e.hermegauss(count) for count in points]
    nodes = list(product(*(node.tolist() for node, _ in rules)))
    weights = [math.prod(choice) for choice in product(*((weight / weight.sum()).tolist() for _, weight in rules))]
    return np.array(nodes, np.float64).reshape(len(weights), len(points)), np.array(weights, np.float64)


def _followers(world: SplitWorld, grid: FloatArray, moved: int, nodes: FloatArray) -> FloatArray:
    """(G, Q, channel dimensions): where the channel goes from each point with each node."""
    repeated = np.repeat(grid, len(nodes), axis=0)
    noise = np.tile(nodes, (len(grid), 1))
    after = world.channel_after(repeated, np.full(len(repeated), moved), noise)
    return after.reshape(len(grid), len(nodes), -1)


def _matrix(axes: tuple[FloatArray, ...], after: FloatArray, weights: FloatArray, points: int) -> Any:
    """Sparse (G, G) that takes values on the grid to what is expected of them one step later."""
    rows = np.repeat(np.arange(after.shape[0]), after.shape[1])
    chances = np.tile(weights, after.shape[0])
    shape = tuple(len(axis) for axis in axes)
    total = sparse.csr_array((points, points))
    for index, weight in corners(axes, *after.reshape(-1, after.shape[2]).T):
        columns = np.ravel_multi_index(index, shape)
        total = total + sparse.coo_array((chances * weight, (rows, columns)), shape=(points, points)).tocsr()
    return total
