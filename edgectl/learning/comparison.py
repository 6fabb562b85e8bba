"""Policies held against what needs no learning: the same starts, the same noise, and the best that is possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgectl.learning.worlds import Surface
from edgectl.output import table
from rl.controllers import GreedyController
from rl.evaluate import Interval, head_room
from rl.optimal import GridModel, solve
from rl.rollout import Decide, Starts, at_random, by, play, towards
from rl.stationary import best_stationary

if TYPE_CHECKING:
    from edgectl.learning.worlds import World

RANDOM_PLAYS = 8
"""Of every start, so that the lower end of the head-room does not depend on one draw."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the comparison."""

    name: str
    mean: float
    half: float | None
    """Of the 95 % interval over policies that differ in their seed alone; None of one."""
    moves: float
    """Share of the decisions that change the split."""
    stationary_room: float | None
    """How far from random to the best stationary policy that was found."""
    optimal_room: float | None
    """How far from random to the finite-horizon optimum, which knows how many steps are left."""


def compare(
    surface: Surface, world: World, policies: Mapping[str, list[Decide]], starts: int, seed: int
) -> list[Contestant]:
    """Random, every policy, and what needs no training; by ascending return."""
    common = Starts.drawn(world, starts, seed)
    random = [play(world, at_random(np.random.default_rng([seed, turn])), common) for turn in range(RANDOM_PLAYS)]
    played = {"random": [(float(each.returns.mean()), each.moves) for each in random]}
    for name, decides in policies.items():
        played[name] = [_of(world, decide, common) for decide in decides]
    static = [_of(world, towards(place), common) for place in range(len(world.splits))]
    best = max(range(len(static)), key=lambda place: static[place][0])
    played[f"static, split {world.splits[best]}"] = [static[best]]
    greedy = GreedyController(surface.gain, world.splits, world.weights, world.actions)
    played["table look-up"] = [_of(world, by(greedy), common)]
    played["best stationary"] = [_of(world, best_stationary(GridModel.of(world)).decide, common)]
    played["optimum"] = [_of(world, solve(world).decide, common)]
    means = {name: float(np.mean([mean for mean, _ in rows])) for name, rows in played.items()}
    found = []
    for name, rows in played.items():
        interval = Interval.of([mean for mean, _ in rows])
        rooms = [head_room(interval.mean, means["random"], means[best]) for best in ("best stationary", "optimum")]
        found.append(
            Contestant(
                name,
                interval.mean,
                interval.half if name in policies else None,
                float(np.mean([moves for _, moves in rows])),
                *(None if math.isnan(room) else room for room in rooms),
            )
        )
    return sorted(found, key=lambda each: each.mean)


def _of(world: World, decide: Decide, starts: Starts) -> tuple[float, float]:
    found = play(world, decide, starts)
    return float(found.returns.mean()), found.moves


def describe_comparison(found: list[Contestant], starts: int) -> str:
    """A table, worst first."""
    rows = [
        (
            each.name,
            f"{each.mean:.4f}" + ("" if each.half is None else f" ± {each.half:.4f}"),
            *("-" if room is None else f"{room:.3f}" for room in (each.stationary_room, each.optimal_room)),
            f"{each.moves:.2f}",
        )
        for each in found
    ]
    header = ("controller", "return", "of best stationary", "of optimum", "moves per decision")
    return f"{table(header, rows)}\n\nmeans over {starts:,} common starts; shares of the way from random"


def comparison_as_json(found: list[Contestant], starts: int) -> dict[str, Any]:
    """The same for programs."""
    names = ("name", "mean", "half", "moves", "stationary_room", "optimal_room")
    rows = [{name: getattr(each, name) for name in names} for each in found]
    return {"starts": starts, "controllers": rows}
