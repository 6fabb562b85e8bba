"""What learned policies are held against: random moves, one split, tables, dynamic programming; from common starts.

Each is given what a coordinator could know: the finite-horizon optimum also knows the steps that are left, which no
policy here does, and stands for what nobody can beat.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgectl.splitting.runs import RunResult, RunSpec, kept, result_from_json
from edgectl.splitting.trainer import STARTS_SEED, valued
from edgectl.splitting.worlds import Inputs, true_world, weights_of, world_of

if TYPE_CHECKING:
    from rl.arrays import FloatArray, IntArray
    from rl.optimal import Optimum
    from rl.quality import Gain
    from rl.reward import RewardWeights
    from rl.rollout import Decide
    from rl.split_world import SplitWorld

RANDOM, STATIC, TABLE = "random", "best static split", "greedy look-up in the table"
HYSTERESIS, PLANNER = "table with hysteresis", "re-planning with the exact planner"
AHEAD = "DP from what is observed"
STATIONARY, OPTIMUM = "best stationary policy (DP)", "finite-horizon optimum (DP)"
COARSE_GRIDS: dict[int, tuple[int, int]] = {6: (2, 3), 18: (3, 6), 36: (6, 6), 72: (8, 9)}
"""True evaluations → losses × splits of the table that they make."""
MARGIN = 0.1
"""Reward per decision by which a split has to be better: a layer's load on the authors' scale."""
GRID_POINTS = {"authors": 121, "model": 121, "harder": 61}
"""Of the channel's axes in dynamic programming: the harder world has four of them."""


def references(spec: RunSpec, inputs: Inputs, starts: int, folder: Path, digest: str) -> dict[str, RunResult]:
    """By name, in ascending order of what they know; kept in the folder."""
    name = f"references-{spec.world}-{spec.case}{spec.actions}-{starts}-{digest[:16]}.json"

    def compute() -> dict[str, Any]:
        return {each: asdict(result) for each, result in _computed(spec, inputs, starts).items()}

    return {each: result_from_json(found) for each, found in kept(folder / name, compute).items()}


def _computed(spec: RunSpec, inputs: Inputs, starts: int) -> dict[str, RunResult]:
    from rl.controllers import PlannerController
    from rl.optimal import solve
    from rl.rollout import Starts, at_random, towards
    from rl.split_costs import SplitCosts
    from rl.stationary import best_static, best_stationary

    world = true_world(spec, inputs)
    common = Starts.drawn(world, starts, STARTS_SEED)
    place, _ = best_static(world, common)
    planner = PlannerController(SplitCosts.of_edgeshard(world.splits))
    quickest = planner.propose(world.measured(common.channel[:1], common.place[:1])[0]).split
    optimum = solve(world, GRID_POINTS[spec.world])
    gain, weights = inputs.gain(spec.world, "table"), weights_of(spec.world)
    deciders: dict[str, Decide] = {
        RANDOM: at_random(np.random.default_rng(STARTS_SEED)),
        # It knows no perplexity, and every split sends the same bytes: its answer never changes.
        PLANNER: towards(world.splits.index(quickest)),
        STATIC: towards(place),
        TABLE: looking_up(gain, world.splits, weights),
        HYSTERESIS: looking_up(gain, world.splits, weights, MARGIN),
        STATIONARY: best_stationary(optimum.model).decide,
        OPTIMUM: optimum.decide,
    }
    if spec.world == "harder":
        deciders[AHEAD] = planning_ahead(optimum)
    results = {name: valued(world, decide, common) for name, decide in deciders.items()}
    results[STATIC].notes["split"] = float(world.splits[place])
    results[PLANNER].notes["split"] = float(quickest)
    return results


def planning_ahead(optimum: Optimum) -> Decide:
    """As `rl.controllers.DpController`, for all episodes at once: the first move of the best plan from where the
    channel is seen to be, made anew each time."""

    def decide(world: SplitWorld, seen: FloatArray) -> IntArray:
        now = world.episodes
        channels = [world.channel_of(each) for each in world.measured(now.channel, now.place)]
        worth = optimum.worth(np.array(channels, np.float64), now.place, world.horizon)
        chosen: IntArray = np.argmax(worth, axis=1)
        return chosen

    return decide


def by_coarse_tables(inputs: Inputs, starts: int, folder: Path, digest: str) -> dict[int, dict[str, RunResult]]:
    """Per number of true evaluations of the authors' surface: the table that they make, looked up greedily, and solved
    by dynamic programming; both valued on the surface itself."""
    spec = RunSpec(world="authors")

    def compute() -> dict[str, Any]:
        found = {count: _on_a_coarse_table(spec, inputs, starts, *shape) for count, shape in COARSE_GRIDS.items()}
        return {str(count): {name: asdict(each) for name, each in both.items()} for count, both in found.items()}

    file = folder / f"coarse-tables-{starts}-{digest[:16]}.json"
    return {
        int(count): {name: result_from_json(each) for name, each in both.items()}
        for count, both in kept(file, compute).items()
    }


def _on_a_coarse_table(spec: RunSpec, inputs: Inputs, starts: int, losses: int, splits: int) -> dict[str, RunResult]:
    from rl.optimal import solve
    from rl.rollout import Starts

    true = true_world(spec, inputs)
    gain = coarse(inputs.gain("authors", "table"), np.linspace(0.01, 0.30, losses), np.linspace(1, 10, splits).round())
    common = Starts.drawn(true, starts, STARTS_SEED)
    optimum = solve(world_of(spec, gain, inputs.table), GRID_POINTS["authors"])
    return {
        TABLE: valued(true, looking_up(gain, true.splits, weights_of("authors")), common),
        OPTIMUM: valued(true, optimum.decide, common),
    }


def coarse(gain: Gain, losses: FloatArray, splits: FloatArray) -> Gain:
    """What is known of a gain after it was asked once per loss and split: linear between these."""
    from rl.authors_table import AuthorsGain
    from rl.grid import Grid

    at_loss, at_split = np.meshgrid(losses, splits, indexing="ij")
    values = gain(at_loss.ravel(), at_split.ravel(), np.zeros(at_loss.size)).reshape(at_loss.shape)
    return AuthorsGain(Grid((losses, splits), values))


def looking_up(gain: Gain, splits: tuple[int, ...], weights: RewardWeights, margin: float = 0.0) -> Decide:
    """As `rl.controllers.GreedyController` and `HysteresisController`, for all episodes at once: to the split that
    promises the highest reward for the channel as it is seen, where it promises more than `margin` more."""
    from rl.reward import split_reward
    from rl.rollout import action_towards

    layers = np.array(splits, np.float64)

    def decide(world: SplitWorld, seen: FloatArray) -> IntArray:
        place = world.episodes.place
        measured = world.measured(world.episodes.channel, place)
        loss = np.repeat([each.loss or 0.0 for each in measured], len(layers))
        sigma = np.repeat([each.sigma or 0.0 for each in measured], len(layers))
        at = np.tile(layers, len(measured))
        promised = split_reward(weights, gain(loss, at, sigma), at, layers[-1]).reshape(len(measured), -1)
        best = np.argmax(promised, axis=1)
        rows = np.arange(len(place))
        moves = promised[rows, best] - promised[rows, place] > margin
        return action_towards(world, place, np.where(moves, best, place))

    return decide
