"""From a file to what chooses splits: a trained policy, a quality table to look into, a re-planner, or nobody.

A policy or a table is about one model: another model's, or one of another number of layers, is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ConfigError
from edgectl.adaptive.choice import ControllerName
from edgectl.adaptive.decision import Price
from edgectl.adaptive.mismatch import differences
from edgectl.adaptive.quality_lookup import QualityLookup
from edgectl.adaptive.replanner import Replanner
from edgectl.quality.table_file import named, read_table_of
from planner.channel import Channel
from rl.controller import Controller, Observation, Proposal
from rl.quality import BadQualityTable, QualityTable
from rl.reward import RewardWeights

if TYPE_CHECKING:
    from rl.policy import SplitPolicy

POLICY_SUFFIX = ".onnx"


@dataclass(frozen=True, slots=True)
class SubjectModel:
    """The model that is served, as files about a model name it."""

    name: str
    digest: str
    num_layers: int
    hidden_bytes: int = 0
    """Of one token over the link; only a planner asks."""
    kv_bytes_per_token_layer: int = 0


@dataclass(frozen=True, slots=True)
class Chooser:
    """A controller, and what is known of the quality of splits beside it."""

    controller: Controller
    price: Price
    origin: str
    table: QualityTable | None = None
    """What it learnt from, or looks into."""

    def mismatches(self, channels: Mapping[tuple[str, str], Channel]) -> list[str]:
        """Emulated links whose losses the table was not measured under, in words: its gains are another channel's."""
        if self.table is None:
            return []
        found = {ends: differences(self.table, channel) for ends, channel in channels.items()}
        return [
            f"{self.origin} is about another channel than {source} to {destination}: {', '.join(differing)}"
            for (source, destination), differing in found.items()
            if differing
        ]


def warmed(chooser: Chooser) -> Chooser:
    """The same, having answered once: the first session is not the one to wait for what loads on first use."""
    asked = Observation(chooser.controller.splits[0], loss=0.1, sigma=0.0, m=1.0, rtt_ms=1.0, goodput_bytes_per_s=1e6)
    # What it cannot answer it will say again, as the reason of a decision.
    with suppress(ValueError):
        chooser.price(asked, chooser.controller.propose(asked).split)
    return chooser


@dataclass(frozen=True, slots=True)
class Static:
    """Leaves every split where the plan put it."""

    splits: tuple[int, ...]
    name: str = "static"

    def propose(self, observation: Observation) -> Proposal:
        return Proposal(observation.split, 0.0, "splits stay where the plan put them")


@dataclass(frozen=True, slots=True)
class MeasuredPrice:
    """A Price by a quality table: the paper's reward of one decision at another split, less that at the present one."""

    lookup: QualityLookup
    weights: RewardWeights
    last_split: int
    """Where the source is spared nothing."""

    def __call__(self, observation: Observation, split: int) -> float | None:
        """None where the channel is not known, or nothing was measured near it or at a split."""
        loss, sigma = observation.loss, 0.0 if self.lookup.sigmas == (0.0,) else observation.sigma
        places = self.lookup.places
        if loss is None or sigma is None or observation.split not in places or split not in places:
            return None
        perplexities = self.lookup.ppl(loss, sigma)
        before, after = (float(perplexities[places[each]]) for each in (observation.split, split))
        if not (math.isfinite(before) and math.isfinite(after)):
            return None
        spared = (observation.split - split) / self.last_split
        return float(self.weights.quality * (before - after) / before + self.weights.load * spared)


def no_price(_: Observation, __: int) -> None:
    """Where no quality was measured."""
    return


def load_chooser(path: Path, kind: ControllerName | None, model: SubjectModel) -> Chooser:
    """What a file says, used in the way that `kind` names; None: a policy as a policy, a table as a table.

    Raises BadPolicy and BadQualityTable naming what is wrong with the file, and ConfigError where it is of the other
    kind, or has no table.
    """
    is_policy = path.suffix.lower() == POLICY_SUFFIX
    if kind == "policy" and not is_policy:
        raise ConfigError(f"--controller policy: {path} is no {POLICY_SUFFIX} file; `edgectl rl train` makes one")
    if is_policy:
        return warmed(_of_policy(path, kind, model))
    table = read_table_of(path, model.name, model.digest, model.num_layers)
    return warmed(_of_table(table, kind or "table", RewardWeights(), model, str(path)))


def _of_policy(path: Path, kind: ControllerName | None, model: SubjectModel) -> Chooser:
    # Here: who serves without a policy loads neither ONNX nor ONNX Runtime.
    from rl.policy import SplitPolicy
    from rl.policy_card import BadPolicy

    policy = SplitPolicy.load(path)
    try:
        policy.require_model(model.name, model.num_layers, model.digest)
    except BadPolicy as problem:
        raise BadPolicy(f"{path}: {problem}") from problem
    table = _table_of(policy, path, model)
    weights = policy.card.weights
    if kind in (None, "policy"):
        price = no_price if table is None else MeasuredPrice(QualityLookup(table), weights, max(policy.splits))
        return Chooser(policy, price, str(path), table)
    if kind == "static":
        return Chooser(Static(policy.splits), no_price, str(path))
    if kind == "planner":
        return _planner(policy.splits, model, str(path))
    if table is None:
        raise ConfigError(f"--controller {kind}: {path} carries no quality table; give one with --policy TABLE.json")
    return _of_table(table, kind, weights, model, str(path))


def _of_table(
    table: QualityTable, kind: ControllerName, weights: RewardWeights, model: SubjectModel, origin: str
) -> Chooser:
    splits = tuple(split for split in table.splits if 0 < split < table.num_layers)
    if not splits:
        raise BadQualityTable("records", f"splits {list(table.splits)} leave one of the two devices without a layer")
    lookup = QualityLookup(table)
    price = MeasuredPrice(lookup, weights, max(splits))
    if kind == "static":
        return Chooser(Static(splits), price, origin)
    if kind == "planner":
        return _planner(splits, model, origin)
    # Here: a policy needs none of what this loads.
    from rl.controllers import GreedyController

    return Chooser(GreedyController(lookup.gain, splits, weights), price, origin, table)


def _planner(splits: tuple[int, ...], model: SubjectModel, origin: str) -> Chooser:
    """It has no notion of quality, so nothing is priced by it either."""
    # Now: the first decision is not to wait for it.
    import rl.controllers  # noqa: F401

    return Chooser(Replanner(splits, model.hidden_bytes, model.kv_bytes_per_token_layer), no_price, origin)


def _table_of(policy: SplitPolicy, path: Path, model: SubjectModel) -> QualityTable | None:
    if not policy.card.quality:
        return None
    try:
        table = QualityTable.from_json(policy.card.quality)
        table.check_model(model.name, model.digest, model.num_layers)
    except BadQualityTable as problem:
        raise named(path, problem) from problem
    return table
