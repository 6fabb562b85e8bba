"""A training run as a file: card, layers and curve as JSON. `edgectl rl export` makes a policy of it.

No pickle and no torch: what a run leaves is a few thousand numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.errors import ConfigError
from edgectl.given_file import UnreadableFile, read_given
from rl.dense import Dense, as_lists, from_lists
from rl.evaluate import by_network, by_scores
from rl.policy_card import BadPolicy, PolicyCard, dump_card, parse_card
from rl.rollout import Decide

SCHEMA = 1
POLICY_SUFFIX, RUN_SUFFIX = ".onnx", ".json"
MOST_BYTES = 64 << 20
"""Of a file; a network of 64-64 with its table and curve has 0.6 MiB."""


@dataclass(frozen=True, eq=False)
class PolicyRun:
    """What one training run left."""

    card: PolicyCard
    layers: tuple[Dense, ...]
    curve: tuple[tuple[int, float], ...] = ()
    """(steps so far, mean return of the episodes that ended since the point before)."""
    train_s: float = 0.0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    card: dict[str, Any]
    layers: list[dict[str, Any]]
    curve: list[tuple[int, float]]
    train_s: float


def dump_run(run: PolicyRun) -> str:
    """JSON that parses to the same run."""
    document = {
        "schema": SCHEMA,
        "card": msgspec.json.decode(dump_card(run.card)),
        "layers": as_lists(run.layers),
        "curve": run.curve,
        "train_s": round(run.train_s, 3),
    }
    return msgspec.json.encode(document).decode() + "\n"


def parse_run(text: str) -> PolicyRun:
    """Raises BadPolicy naming the field."""
    try:
        raw = msgspec.json.decode(text, type=_File)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise BadPolicy(f"run: {problem}") from None
    if raw.schema != SCHEMA:
        raise BadPolicy(f"run: schema is {raw.schema}, this version reads {SCHEMA}; train it again")
    card = parse_card(msgspec.json.encode(raw.card).decode())
    try:
        layers = from_lists(raw.layers, len(card.observation))
    except ValueError as problem:
        raise BadPolicy(f"run: {problem}") from None
    if not layers or len(layers[-1].bias) != len(card.moves):
        raise BadPolicy(f"run: layers: their scores are not the {len(card.moves)} that its card has moves for")
    return PolicyRun(card, layers, tuple(raw.curve), raw.train_s)


def load_run(path: Path) -> PolicyRun:
    """Raises BadPolicy naming the file."""
    try:
        return parse_run(read_given(path, MOST_BYTES))
    except (BadPolicy, UnreadableFile) as problem:
        raise BadPolicy(f"{path}: {problem}") from problem


def load_decider(path: Path) -> tuple[PolicyCard, Decide]:
    """What a policy or a run says of itself, and how it decides. Raises BadPolicy naming the file."""
    if path.suffix.lower() == POLICY_SUFFIX:
        from rl.policy import SplitPolicy

        policy = SplitPolicy.load(path)
        return policy.card, by_scores(lambda rows: policy.scores(rows.astype(np.float32)))
    run = load_run(path)
    return run.card, by_network(run.layers)


def write_run(path: Path, run: PolicyRun) -> None:
    """A policy where the name ends in .onnx, a run where in .json. Raises ConfigError and BadPolicy."""
    check_name(path)
    try:
        if path.suffix.lower() == POLICY_SUFFIX:
            from rl.export import write_policy

            write_policy(path, run.layers, run.card)
        else:
            path.write_text(dump_run(run), encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"--out {path}: {problem.strerror}") from problem


def check_name(path: Path) -> None:
    """Before minutes of training. Raises ConfigError for a name that says neither policy nor run, or has no folder."""
    if path.suffix.lower() not in (POLICY_SUFFIX, RUN_SUFFIX):
        raise ConfigError(f"--out {path}: a name in {POLICY_SUFFIX} (policy) or {RUN_SUFFIX} (run) is expected")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: no such folder")
