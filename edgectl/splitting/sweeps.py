"""Which runs the splitting study is made of: per figure the training runs, per size how long and how often. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from edgectl.splitting.runs import Case, Reward, RunSpec, World
from rl.train_settings import Algorithm

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
BATCH_SIZES = (25, 50, 100, 200)
CLIP_RANGES = (0.1, 0.2, 0.3, 0.4)
GAE_LAMBDAS = (0.9, 0.95, 0.99, 1.0)
"""Around the authors' settings, 3e-4, 100, 0.2 and 0.95, which each of the four contains: one run serves all."""
AUTHORS_SETTINGS = {"learning_rate": 3e-4, "batch_size": 100, "clip_range": 0.2, "gae_lambda": 0.95}
AUTHORS_TRUE: dict[str, Any] = {"rollout": 100, "batch_size": 25}
"""Theirs where every reward is measured."""
ACTION_SETS = (3, 5, 9)
CASES: tuple[Case, ...] = ("L", "H", "A")
LEARNERS: tuple[tuple[Algorithm, Reward, bool], ...] = (
    ("ppo", "surrogate", False),
    ("ppo", "table", False),
    ("a2c", "surrogate", False),
    ("dqn", "surrogate", False),
    ("ppo", "surrogate", True),
)
"""Algorithm, reward, tuned. PPO is trained with and without a surrogate; the others with it, as the paper does."""
HISTORIES = (1, 4)
LEAST_STEPS_TO_LEARN = 100
"""Below that no learner has finished its first update."""


@dataclass(frozen=True, slots=True)
class StudySize:
    """How much of everything. `FULL` is what the report is made of, `QUICK` shows that all of it works."""

    name: str
    steps: int
    """Of the runs the paper's claims are held against."""
    sweep_steps: int
    harder_steps: int
    seeds: int
    sweep_seeds: int
    losses: tuple[float, ...]
    splits: tuple[int, ...]
    """Of the perplexity grid, of 32 layers."""
    sigmas: tuple[float, ...]
    """Of Fig. 3's second half: noise of fixed standard deviation, nothing erased."""
    fading_sigmas: tuple[float, ...]
    """Of the grid under equation 3 whole, which policies of the model's own world are trained and valued on."""
    grid_runs: int
    grid_tokens: int
    true_steps: int
    """Steps of training whose perplexities are measured; the rest of that run is extrapolated."""
    starts: int
    """Episodes a policy is valued over, the same ones for all."""
    harder_starts: int
    """The same in the harder world, whose episodes are four times as long."""
    folds: int
    """Of the surrogates' cross-validation."""
    budgets: tuple[int, ...]
    """True evaluations that controllers are held against each other at."""

    def starts_of(self, world: World) -> int:
        return self.harder_starts if world == "harder" else self.starts


FULL = StudySize(
    name="full",
    steps=240_000,
    sweep_steps=60_000,
    harder_steps=120_000,
    seeds=5,
    sweep_seeds=3,
    losses=(0.0, 0.02, 0.06, 0.1, 0.14, 0.18, 0.22, 0.3),
    splits=(1, 4, 7, 10, 14, 18, 22, 26, 31),
    sigmas=(1.0, 2.0, 5.0),
    fading_sigmas=(0.0, 1.0, 2.0),
    grid_runs=5,
    grid_tokens=4096,
    true_steps=300,
    starts=5000,
    harder_starts=1000,
    folds=8,
    budgets=(6, 18, 36, 72, 300, 1000, 6000),
)
QUICK = StudySize(
    name="quick",
    steps=2400,
    sweep_steps=800,
    harder_steps=1600,
    seeds=2,
    sweep_seeds=1,
    losses=(0.0, 0.1, 0.3),
    splits=(1, 10, 20, 31),
    sigmas=(5.0,),
    fading_sigmas=(0.0, 2.0),
    grid_runs=2,
    grid_tokens=512,
    true_steps=8,
    starts=500,
    harder_starts=50,
    folds=2,
    budgets=(6, 72, 800),
)


def figure_5(size: StudySize) -> tuple[RunSpec, ...]:
    """Every learner in every case, with nine actions; cases L and H as long as a sweep's run."""
    specs = [
        RunSpec(
            algorithm,
            case=case,
            steps=size.steps if case == "A" else size.sweep_steps,
            reward=reward,
            tuned=tuned,
        )
        for case in CASES
        for algorithm, reward, tuned in LEARNERS
        if case == "A" or (reward == "surrogate" and not tuned)
    ]
    return _seeded(specs, size.seeds)


def figure_5_model(size: StudySize) -> tuple[RunSpec, ...]:
    """The same learners on the model's own table under equation 3."""
    specs = [
        RunSpec(algorithm, "model", "A", 9, size.sweep_steps, reward=reward, tuned=tuned)
        for algorithm, reward, tuned in LEARNERS
    ]
    return _seeded(specs, size.seeds)


def figure_8(size: StudySize) -> tuple[RunSpec, ...]:
    """PPO with three, five and nine actions, equally long; nine actions of that length serve Fig. 9 too."""
    return _seeded([RunSpec(actions=actions, steps=size.sweep_steps) for actions in ACTION_SETS], size.seeds)


def figure_9(size: StudySize) -> dict[str, tuple[RunSpec, ...]]:
    """Per hyper-parameter its runs. The authors' own value is None: the same run in all four, and in Fig. 8."""
    plain = RunSpec(steps=size.sweep_steps)
    swept = {
        "learning_rate": LEARNING_RATES,
        "batch_size": BATCH_SIZES,
        "clip_range": CLIP_RANGES,
        "gae_lambda": GAE_LAMBDAS,
    }
    return {
        name: _seeded([_with(plain, name, value) for value in values], size.sweep_seeds)
        for name, values in swept.items()
    }


def harder_world(size: StudySize) -> tuple[RunSpec, ...]:
    """PPO, tuned, where moving costs and the channel drifts: with the present observation, and with the last few."""
    plain = RunSpec(world="harder", steps=size.harder_steps, reward="table", tuned=True)
    return _seeded([replace(plain, history=history) for history in HISTORIES], size.seeds)


def equal_evaluations(size: StudySize) -> tuple[RunSpec, ...]:
    """Learners that pay for every reward: as many steps as evaluations, on the true surface."""
    specs = [
        RunSpec(algorithm, "authors", "A", 9, steps, reward="table")
        for steps in size.budgets
        if steps >= LEAST_STEPS_TO_LEARN
        for algorithm in ("ppo", "a2c", "dqn")
    ]
    specs = [replace(spec, **AUTHORS_TRUE) if spec.algorithm == "ppo" else spec for spec in specs]
    return _seeded(specs, size.seeds)


def true_perplexity(size: StudySize) -> RunSpec:
    """The one run whose rewards are measured."""
    return RunSpec("ppo", "model", "A", 9, size.true_steps, reward="ppl", **AUTHORS_TRUE)


def all_runs(size: StudySize) -> tuple[RunSpec, ...]:
    """Every training run of the study but the measured one, each once."""
    swept = (spec for specs in figure_9(size).values() for spec in specs)
    runs = (*figure_5(size), *figure_5_model(size), *figure_8(size), *swept)
    return tuple(dict.fromkeys((*runs, *harder_world(size), *equal_evaluations(size))))


def setting_of(spec: RunSpec, name: str) -> float:
    """The value of a swept hyper-parameter, the authors' where the run does not say."""
    value = getattr(spec, name)
    return float(AUTHORS_SETTINGS[name] if value is None else value)


def _with(spec: RunSpec, name: str, value: float) -> RunSpec:
    own = None if value == AUTHORS_SETTINGS[name] else value
    match name:
        case "learning_rate":
            return replace(spec, learning_rate=own)
        case "batch_size":
            return replace(spec, batch_size=None if own is None else int(own))
        case "clip_range":
            return replace(spec, clip_range=own)
        case _:
            return replace(spec, gae_lambda=own)


def _seeded(specs: Iterable[RunSpec], seeds: int) -> tuple[RunSpec, ...]:
    return tuple(replace(spec, seed=seed) for spec in specs for seed in range(seeds))
