"""`edgectl rl train`: from a table and options to trained policies, their worth, and the best one's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgectl.learning.run import PolicyRun, load_decider
from edgectl.learning.worlds import (
    ACTIONS,
    Surface,
    card_of,
    load_surrogate,
    surface_of,
    world_of,
    world_of_card,
)
from edgectl.quality.table_file import read_table
from rl.evaluate import STARTS, Interval, by_network
from rl.policy_card import BadPolicy, PolicyCard, WorldName
from rl.reward import RewardWeights
from rl.rollout import Decide, Starts, at_random, play

if TYPE_CHECKING:
    from edgectl.learning.worlds import World
    from rl.train_settings import TrainSettings

VALUED_SEED = 20240602
"""Of the starts that runs are chosen by."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What a person asks for."""

    quality: Path | None
    """None: the surface published with the paper."""
    surrogate: Path | None
    world: WorldName
    learner: Literal["ppo", "a2c", "dqn"]
    settings: Literal["tuned", "authors"]
    actions: int
    steps: int
    seed: int
    seeds: int
    weights: Mapping[str, float | None]
    """Of the reward's terms; None: the world's own."""
    logs: Path | None = None


@dataclass(frozen=True, eq=False)
class Training:
    """Every run's worth, and the best run."""

    best: PolicyRun
    means: tuple[float, ...]
    """Return of each seed's policy, over common starts."""
    seeds: tuple[int, ...]
    random: float
    train_s: tuple[float, ...]


def train_best(request: TrainRequest, progress: Callable[[int, int], None]) -> Training:
    """One run per seed; rewards may come from a surrogate, worth always from the table.

    Raises BadQualityTable, BadSurrogate and BadPolicy, and ValueError for weights that are no numbers.
    """
    from rl.train import train

    surface = surface_of(None if request.quality is None else read_table(request.quality))
    learned = None if request.surrogate is None else load_surrogate(request.surrogate, surface)
    if request.actions not in ACTIONS:
        raise BadPolicy(f"policy: {request.actions} actions; {', '.join(map(str, ACTIONS))} are possible")
    actions = ACTIONS[request.actions]
    true = world_of(surface, request.world, actions)
    weights = _weights(true.weights, request.weights)
    true = world_of(surface, request.world, actions, weights)
    practice = world_of(surface, request.world, actions, weights, learned)
    starts = Starts.drawn(true, STARTS, VALUED_SEED)
    origin = ("table" if request.quality else "published surface") if learned is None else "surrogate"
    runs, means = [], []
    for turn in range(request.seeds):
        settings = _settings(request, request.seed + turn)
        trained = train(practice, settings, _shifted(progress, turn, request), request.logs)
        card = card_of(surface, request.world, true, settings, origin)
        runs.append(PolicyRun(card, trained.layers, trained.curve, trained.train_s))
        means.append(float(play(true, by_network(trained.layers), starts).returns.mean()))
    return Training(
        best=runs[int(np.argmax(means))],
        means=tuple(means),
        seeds=tuple(run.card.seed for run in runs),
        random=float(play(true, at_random(np.random.default_rng(VALUED_SEED)), starts).returns.mean()),
        train_s=tuple(run.train_s for run in runs),
    )


def _settings(request: TrainRequest, seed: int) -> TrainSettings:
    from rl.train_settings import TUNED, TrainSettings

    if request.learner == "ppo" and request.settings == "tuned":
        return replace(TUNED, steps=request.steps, seed=seed)
    return TrainSettings(request.learner, request.steps, seed)


def _weights(own: RewardWeights, given: Mapping[str, float | None]) -> RewardWeights:
    try:
        return replace(own, **{name: value for name, value in given.items() if value is not None})
    except ValueError as problem:
        raise BadPolicy(f"policy: {problem}") from problem


def _shifted(progress: Callable[[int, int], None], turn: int, request: TrainRequest) -> Callable[[int, int], None]:
    return lambda done, total: progress(turn * total + done, request.seeds * total)


def describe_training(found: Training) -> str:
    """What the runs are worth, in a few lines."""
    card = found.best.card
    lines = [
        f"{card.learner} for {card.model}: splits {', '.join(map(str, card.splits))}, {len(card.moves)} moves, "
        f"rewards from the {card.trained_on}",
        f"return {max(found.means):.4f} (seed {card.seed}), random moves {found.random:.4f}: {STARTS:,} common starts",
        f"trained in {max(found.train_s):.0f} s",
    ]
    if len(found.means) > 1:
        interval = Interval.of(found.means)
        lines.insert(2, f"{len(found.means)} seeds: {interval.mean:.4f} ± {interval.half:.4f} (95 %)")
    return "\n".join(lines)


def training_as_json(found: Training) -> dict[str, Any]:
    """The same for programs."""
    card = found.best.card
    return {
        "model": card.model,
        "splits": card.splits,
        "seeds": found.seeds,
        "means": found.means,
        "random": found.random,
        "train_s": found.train_s,
        "written_seed": card.seed,
    }


def contestants(paths: list[Path], quality: Path | None) -> tuple[Surface, World, dict[str, list[Decide]]]:
    """The world that policies are compared in, and they by name: several that differ in their seed alone are one.

    Raises BadPolicy where they are of different worlds.
    """
    loaded = [(path, *load_decider(path)) for path in paths]
    cards = [card for _, card, _ in loaded]
    if quality is not None:
        text = read_table(quality).to_json()
        cards = [replace(card, quality=text).checked() for card in cards]
    surface, world = world_of_card(cards[0])
    if quality is not None:
        _require_table(cards[0], surface)
    grouped: dict[str, list[Decide]] = {}
    for (path, card, decide), own in zip(loaded, cards, strict=True):
        if _place(own) != _place(cards[0]):
            raise BadPolicy(f"{path}: another model, world, moves or table than {paths[0]}; compare them one by one")
        grouped.setdefault(f"{card.learner}, {card.trained_on}, {card.steps:,} steps", []).append(decide)
    return surface, world, grouped


def with_table(run: PolicyRun, quality: Path) -> PolicyRun:
    """The run with a table to carry. Raises BadQualityTable, and BadPolicy for one of other splits or another model."""
    table = read_table(quality)
    surface = surface_of(table)
    _require_table(run.card, surface)
    return replace(run, card=replace(run.card, quality=table.to_json()))


def _require_table(card: PolicyCard, surface: Surface) -> None:
    if (card.num_layers, card.splits) != (surface.num_layers, surface.splits) or (
        card.digest and surface.digest and card.digest != surface.digest
    ):
        raise BadPolicy(
            f"policy: for {card.model} with splits {', '.join(map(str, card.splits))}, "
            f"the table is of {surface.model} with splits {', '.join(map(str, surface.splits))}"
        )


def _place(card: PolicyCard) -> tuple[object, ...]:
    """What two policies must share to be compared."""
    return card.model, card.digest, card.world, card.moves, card.splits, card.observation, card.weights, card.quality
