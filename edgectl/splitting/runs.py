"""What one training run of the splitting study is, what it leaves, and where that is kept: an interruption costs a run.

A run's file is named after everything its result depends on, so a file that is there is never out of date; a file that
was cut short is no JSON and counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from agent.errors import ConfigError
from rl.train_settings import TUNED, Algorithm, TrainSettings

World = Literal["authors", "model", "harder"]
"""The authors' surface with their drift of p; the model's own table on a channel of equation 3; the same with costs of
moving, latency and energy."""
Case = Literal["L", "H", "A"]
Reward = Literal["surrogate", "table", "ppl"]
"""What training's rewards come from: a fitted network, the interpolated table, or perplexities measured then."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One training run. Hyper-parameters that are None are the authors' for PPO, Stable-Baselines3's otherwise."""

    algorithm: Algorithm = "ppo"
    world: World = "authors"
    case: Case = "A"
    actions: int = 9
    steps: int = 240_000
    seed: int = 0
    reward: Reward = "surrogate"
    learning_rate: float | None = None
    batch_size: int | None = None
    clip_range: float | None = None
    gae_lambda: float | None = None
    tuned: bool = False
    """By our settings (`rl.train_settings.TUNED`) in place of the authors'; the fields above still count."""
    rollout: int | None = None
    """Steps between PPO's updates; None: 400."""
    history: int = 1
    """Observations the policy sees at once; 1: the present one."""

    def __post_init__(self) -> None:
        for name, allowed in (("algorithm", Algorithm), ("world", World), ("case", Case), ("reward", Reward)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} {getattr(self, name)!r}: one of {', '.join(get_args(allowed))} is expected")
        if self.actions not in (3, 5, 9):
            raise ValueError(f"{self.actions} actions: 3, 5 or 9 are expected")
        if self.steps < 1 or self.history < 1 or self.seed < 0:
            raise ValueError(f"steps {self.steps}, history {self.history}, seed {self.seed} are not all positive")

    @property
    def title(self) -> str:
        """In a few words, for a progress bar."""
        tuned = "".join(
            f" {name.replace('_', ' ')} {getattr(self, name):g}"
            for name in ("learning_rate", "batch_size", "clip_range", "gae_lambda")
            if getattr(self, name) is not None
        )
        ours = " tuned" if self.tuned else ""
        past = f" history {self.history}" if self.history > 1 else ""
        what = f"{self.algorithm} {self.world} {self.case} {self.actions} {self.reward}"
        return f"{what}{ours}{tuned}{past} seed {self.seed}"


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves: how it learned, what its policy is worth, what it took."""

    curve: tuple[tuple[int, float], ...]
    """(steps so far, mean return of the episodes that ended since the point before)."""
    returns: tuple[float, ...]
    """Of episodes from common starts, the policy's most likely actions; the first of them, as many as are drawn."""
    mean: float
    """Return over all common starts."""
    untrained_returns: tuple[float, ...] = ()
    """The same before the first step."""
    choices: tuple[tuple[float, int], ...] = ()
    """(loss probability, split) at the end of episodes."""
    train_s: float = 0.0
    peak_rss_bytes: int = 0
    evaluations: int = 0
    """Perplexities measured for it."""
    evaluation_s: float = 0.0
    """Time in these."""
    notes: dict[str, float] = field(default_factory=dict)
    """Further numbers of this world: moves per episode, and so on."""


class RunStore:
    """Results by run, one file each, under the digest of the run, of what it was trained on, and of our settings where
    it is trained by them: when these change, those runs alone are made again. The authors' do not change."""

    def __init__(self, folder: Path, inputs_digest: str, tuned: TrainSettings = TUNED) -> None:
        self.folder = folder
        self._inputs_digest = inputs_digest
        self._tuned = asdict(tuned)

    def path_of(self, spec: RunSpec) -> Path:
        ours = [self._tuned] if spec.tuned else []
        text = json.dumps([self._inputs_digest, asdict(spec), *ours], sort_keys=True)
        name = f"{spec.algorithm}-{spec.world}-{spec.case}{spec.actions}-{spec.seed}"
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def get(self, spec: RunSpec) -> RunResult | None:
        """None where it has not run, or its file is damaged."""
        try:
            document = json.loads(self.path_of(spec).read_text(encoding="utf-8"))
            return result_from_json(document)
        except (OSError, ValueError):
            return None

    def put(self, spec: RunSpec, result: RunResult) -> None:
        """Raises ConfigError where it cannot be written."""
        path = self.path_of(spec)
        write_whole(path, json.dumps({"spec": asdict(spec), **asdict(result)}, separators=(",", ":")) + "\n")


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing: a reader never sees half. Raises ConfigError."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as problem:
        raise ConfigError(f"--out {path}: {problem.strerror}") from problem


def spec_from_json(document: Mapping[str, Any]) -> RunSpec:
    """Raises ValueError for what is no run."""
    known = {each.name for each in fields(RunSpec)}
    if set(document) - known:
        raise ValueError(f"a run has no {', '.join(sorted(set(document) - known))}")
    return RunSpec(**document)


def result_from_json(document: Mapping[str, Any]) -> RunResult:
    """Raises ValueError for what is no result."""
    try:
        return RunResult(
            curve=tuple((int(at), float(value)) for at, value in document["curve"]),
            returns=tuple(map(float, document["returns"])),
            mean=float(document["mean"]),
            untrained_returns=tuple(map(float, document.get("untrained_returns", ()))),
            choices=tuple((float(loss), int(split)) for loss, split in document.get("choices", ())),
            train_s=float(document.get("train_s", 0.0)),
            peak_rss_bytes=int(document.get("peak_rss_bytes", 0)),
            evaluations=int(document.get("evaluations", 0)),
            evaluation_s=float(document.get("evaluation_s", 0.0)),
            notes={str(name): float(value) for name, value in document.get("notes", {}).items()},
        )
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"no result of a run: {problem}") from problem


def kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file has, or what is computed now and put there. Raises ConfigError where it cannot be written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass  # never computed, or cut short
    computed = compute()
    write_whole(path, json.dumps(computed) + "\n")
    return computed
