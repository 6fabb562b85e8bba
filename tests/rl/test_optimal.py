"""Dynamic programming against enumerating everything, against playing it, and against what is known of the authors'
surrogate."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rl.arrays import FloatArray, IntArray
from rl.authors_table import authors_gain
from rl.optimal import gauss_hermite, solve
from rl.rollout import Starts, at_random, play
from rl.split_world import ACTIONS_3, ACTIONS_5, ACTIONS_9, AuthorsWorld, ChannelWorld, SplitWorld


def enumerated(world: SplitWorld, starts: Starts) -> FloatArray:
    """The best of all sequences of actions from each start, played one by one."""
    best = np.full(len(starts.place), -np.inf)
    for sequence in product(range(len(world.actions)), repeat=world.horizon):
        steps = iter(sequence)
        played = play(world, lambda world, seen: np.full(len(seen), next(steps)), starts)  # noqa: B023
        best = np.maximum(best, played.returns)
    return best


def searched(world: SplitWorld, channel: FloatArray, place: int, to_go: int) -> float:
    """Expected return from one state (1, dimensions) by recursion over actions and quadrature nodes: no grid."""
    if to_go == 0:
        return 0.0
    nodes, weights = gauss_hermite(world.quadrature)
    best = -np.inf
    for action in range(len(world.actions)):
        before: IntArray = np.array([place])
        after = world.place_after(before, np.array([action]))
        earned = 0.0
        for node, weight in zip(nodes, weights, strict=True):
            follower = world.channel_after(channel, after - before, node[None])
            later = searched(world, follower, int(after[0]), to_go - 1)
            earned += weight * (float(world.rewards(follower, before, after)[0]) + later)
        best = max(best, earned)
    return best


class DriftingWorld(AuthorsWorld):
    """A move changes the loss as much as fading does."""

    drift_per_split = 0.2


@pytest.mark.parametrize("kind", [AuthorsWorld, DriftingWorld])
@pytest.mark.parametrize("actions", [ACTIONS_3, ACTIONS_5])
def test_nothing_beats_it_where_nothing_is_random(kind: type[AuthorsWorld], actions: tuple[int, ...]) -> None:
    world = kind(authors_gain(), actions=actions, horizon=4)
    starts = Starts.drawn(world, 50, seed=0)
    optimum = solve(world, points=301)
    best = enumerated(world, starts)
    # Between the points of the grid a maximum has kinks.
    np.testing.assert_allclose(optimum.value(starts.channel, starts.place), best, atol=2e-3)
    returns = play(world, optimum.decide, starts).returns
    assert (returns <= best + 1e-9).all()
    assert returns.mean() == pytest.approx(best.mean(), abs=1e-4)


def test_it_is_the_expected_return_where_the_channel_walks() -> None:
    world = ChannelWorld(authors_gain(), sigmas=(0.0, 5.0), actions=ACTIONS_3, horizon=2, splits=(1, 4, 7))
    optimum = solve(world, points=121)
    for sigma, m, place in ((0.0, 0.6, 0), (5.0, 1.0, 1), (0.0, 2.9, 2)):
        channel = np.array([[sigma, m]])
        by_search = searched(world, channel, place, 2)
        assert optimum.value(channel, np.array([place]))[0] == pytest.approx(by_search, abs=1e-3)


def test_playing_it_earns_what_it_promises() -> None:
    world = ChannelWorld(authors_gain())
    optimum, starts = solve(world), Starts.drawn(world, 5000, seed=1)
    promised, returns = optimum.value(starts.channel, starts.place), play(world, optimum.decide, starts).returns
    error = (returns - promised).std() / np.sqrt(len(returns))
    assert (returns - promised).mean() == pytest.approx(0.0, abs=4 * error)


@pytest.mark.parametrize(
    ("actions", "best", "spread", "random"),
    [(ACTIONS_3, 3.01, 0.43, 2.69), (ACTIONS_5, 3.12, None, None), (ACTIONS_9, 3.23, None, None)],
)
def test_returns_on_the_authors_surface_are_those_of_their_surrogate(
    actions: tuple[int, ...], best: float, spread: float | None, random: float | None
) -> None:
    """Computed on the surrogate itself, from a few tens of starts: hence the tolerance."""
    world = AuthorsWorld(authors_gain(), actions=actions)
    starts = Starts.drawn(world, 5000, seed=2)
    optimum = solve(world)
    returns = play(world, optimum.decide, starts).returns
    assert returns.mean() == pytest.approx(best, abs=0.05)
    assert returns.mean() == pytest.approx(optimum.value(starts.channel, starts.place).mean(), abs=1e-3)
    if spread is not None:
        assert returns.std() == pytest.approx(spread, abs=0.05)
    if random is not None:
        assert play(world, at_random(np.random.default_rng(0)), starts).returns.mean() == pytest.approx(
            random, abs=0.03
        )


def test_a_finer_grid_changes_nothing_that_matters() -> None:
    world = AuthorsWorld(authors_gain())
    starts = Starts.drawn(world, 500, seed=3)
    coarse, fine = (solve(world, points).value(starts.channel, starts.place) for points in (121, 481))
    np.testing.assert_allclose(coarse, fine, atol=5e-3)
    assert coarse.mean() == pytest.approx(fine.mean(), abs=5e-4)


@pytest.mark.parametrize("points", [(), (15,), (7, 5)])
def test_quadrature_has_the_moments_of_normal_numbers(points: tuple[int, ...]) -> None:
    nodes, weights = gauss_hermite(points)
    assert nodes.shape == (len(weights), len(points))
    assert weights.sum() == pytest.approx(1.0)
    for node in nodes.T:
        assert [float(weights @ node**power) for power in (1, 2, 3, 4)] == pytest.approx([0.0, 1.0, 0.0, 3.0], abs=1e-9)
