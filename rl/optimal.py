"""What the best possible controller earns: exact dynamic programming over a world's channel on a grid.

The channel is continuous; its grid is read linearly between the points, and what is normal in its course is integrated
by Gauss-Hermite quadrature. Values are exact where the world is deterministic and linear between the points, and
converge with the grid elsewhere. Small cases are held against enumerating everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from rl.arrays import FloatArray, IntArray
from rl.grid import Grid, corners
from rl.rollout import Decide, Starts
from rl.split_world import SplitWorld

QUADRATURE_POINTS = {0: 1, 1: 15, 2: 7}
"""Per dimension of the noise: products of them are summed for every point of the grid."""
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
    transitions: Mapping[int, Any]
    """By places moved: sparse (G, G), rows sum to 1."""

    @classmethod
    def of(cls, world: SplitWorld, points: int = 121) -> GridModel:
        """`points` per axis of the channel that has no few values of its own."""
        axes = world.axes(points)
        grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
        nodes, weights = gauss_hermite(world.noise_dimensions)
        places = np.arange(len(world.splits))
        reached = np.stack(
            [world.place_after(places, np.full(len(places), action)) for action in range(len(world.actions))], axis=1
        )
        rewards = np.zeros((len(grid), *reached.shape))
        transitions = {}
        for moved in np.unique(reached - places[:, None]).tolist():
            after = _followers(world, grid, moved, nodes)
            transitions[moved] = _matrix(axes, after, weights, len(grid))
            for place, action in np.argwhere(reached - places[:, None] == moved):
                earned = world.rewards(
                    after.reshape(-1, grid.shape[1]),
                    np.full(after.shape[0] * after.shape[1], place),
                    np.full(after.shape[0] * after.shape[1], reached[place, action]),
                )
                rewards[:, place, action] = earned.reshape(after.shape[:2]) @ weights
        return cls(world, axes, rewards, reached, transitions)

    def worth(self, following: FloatArray) -> FloatArray:
        """(G, S, A): what an action earns, and the values (G, S) of where it leads."""
        result: FloatArray = self.rewards.copy()
        for moved, matrix in self.transitions.items():
            expected = matrix @ following
            for place, action in np.argwhere(self.reached - np.arange(len(self.reached))[:, None] == moved):
                result[:, place, action] += expected[:, self.reached[place, action]]
        return result

    def grid(self, values: FloatArray) -> Grid:
        """Values (G, S) with an axis for the place behind the channel's."""
        shape = [len(axis) for axis in self.axes]
        places = np.arange(values.shape[1], dtype=np.float64)
        return Grid((*self.axes, places), values.reshape(*shape, -1))

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
    values: tuple[Grid, ...]
    """With 0, 1, ... steps to go, over channel and place."""

    def value(self, channel: FloatArray, place: IntArray) -> FloatArray:
        """(n,): the expected return of whole episodes."""
        return self.values[-1].at(*channel.T, place)

    def worth(self, channel: FloatArray, place: IntArray, to_go: int) -> FloatArray:
        """(n, A): each action's reward and the value after it, with `to_go` steps left, from where one really is and
        not from the nearest point of the grid."""
        world = self.model.world
        nodes, weights = gauss_hermite(world.noise_dimensions)
        result = np.empty((len(place), len(world.actions)))
        for action in range(len(world.actions)):
            after = world.place_after(place, np.full(len(place), action))
            earned = np.zeros(len(place))
            for node, weight in zip(nodes, weights, strict=True):
                channel_after = world.channel_after(
                    channel, after - place, np.broadcast_to(node, (len(place), len(node)))
                )
                later = self.values[to_go - 1].at(*channel_after.T, after)
                earned += weight * (world.rewards(channel_after, place, after) + later)
            result[:, action] = earned
        return result

    @property
    def decide(self) -> Decide:
        """Knows the channel itself and the steps that are left."""

        def best(world: SplitWorld, seen: FloatArray) -> IntArray:
            now = world.episodes
            actions: IntArray = np.argmax(self.worth(now.channel, now.place, world.horizon - now.steps), axis=1)
            return actions

        return best


def solve(world: SplitWorld, points: int = 121) -> Optimum:
    """Backward from the last step: V_0 = 0, V_k(c, l) = max_a E[r + V_(k-1)(c', l')]."""
    model = GridModel.of(world, points)
    values = [np.zeros(model.rewards.shape[:2])]
    for _ in range(world.horizon):
        values.append(model.worth(values[-1]).max(axis=2))
    return Optimum(model, tuple(model.grid(value) for value in values))


def gauss_hermite(dimensions: int) -> tuple[FloatArray, FloatArray]:
    """Nodes (Q, dimensions) and weights (Q,), which sum to 1, of standard normal numbers."""
    points = QUADRATURE_POINTS[dimensions]
    node, weight = np.polynomial.hermite_e.hermegauss(points)
    weight = weight / weight.sum()
    nodes = np.array(list(product(node, repeat=dimensions)), np.float64).reshape(-1 if dimensions else 1, dimensions)
    return nodes, np.array([np.prod(choice) for choice in product(weight, repeat=dimensions)])


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
