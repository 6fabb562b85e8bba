"""What a policy file says of itself: model, splits, moves, what it sees and how it is scaled. Data and its checks.

The card is one JSON text in the metadata of the ONNX file under `METADATA_KEY`: a network without it cannot be
told from one for another model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from rl.reward import RewardWeights

SCHEMA = 1
METADATA_KEY = "edgectl.split_policy"
INPUT, OUTPUT = "observation", "scores"
"""Names of the network's one input (rows, features) and one output (rows, moves)."""

FeatureName = Literal["loss", "sigma", "m", "rtt_ms", "goodput_bytes_per_s", "split"]
WorldName = Literal["channel", "drift", "harder"]
"""The paper's fading (`ChannelWorld`), the authors' drift of the loss (`AuthorsWorld`), and the one where moves cost
something (`HarderWorld`)."""
FEATURES: tuple[str, ...] = get_args(FeatureName)

MOST_SPLITS = 1024
MOST_CARD_CHARACTERS = 8 << 20
"""A quality table of 1,000 records with 5 runs each has 200 KB."""
_LARGEST = 1e15


class BadPolicy(ValueError):
    """A policy that cannot be used: what is wrong, where, and the way out."""

    code = "bad_policy"


@dataclass(frozen=True, slots=True)
class Feature:
    """One number of an observation; the network sees it as -1 at `low` and 1 at `high`, and 0 where these are one."""

    name: FeatureName
    low: float
    high: float

    def scaled(self, value: float) -> float:
        """Within -1 to 1: what training has not seen is taken as the nearest that it has."""
        if self.low == self.high:
            return 0.0
        return 2.0 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low) - 1.0


@dataclass(frozen=True, slots=True)
class PolicyCard:
    """Raises BadPolicy from `checked`, not when it is made."""

    model: str
    digest: str
    """Of the model's weights; empty: of no model in particular, such as a published surface."""
    num_layers: int
    splits: tuple[int, ...]
    """Split points it may choose, ascending."""
    moves: tuple[int, ...]
    """One per score: by how many places of `splits` it moves. What would leave the list stops at its end."""
    observation: tuple[Feature, ...]
    weights: RewardWeights
    """Of the reward it was trained for."""
    quality: str = ""
    """The quality table it was trained with, as JSON; empty: none, and gains of proposals are not known."""
    world: WorldName = "channel"
    """What it was trained in."""
    learner: str = ""
    trained_on: str = ""
    """Where its rewards came from: table, surrogate, authors' surface, measured perplexity."""
    steps: int = 0
    seed: int = 0

    def checked(self) -> PolicyCard:
        """Itself. Raises BadPolicy naming the field."""
        for problem_of in (_splits_problem, _moves_problem, _observation_problem):
            if problem := problem_of(self):
                raise BadPolicy(f"policy: {problem}")
        return self

    def destination(self, split: int, action: int) -> int:
        """The split that an action leads to. Raises ValueError for a split that is not among `splits`."""
        try:
            place = self.splits.index(split)
        except ValueError:
            known = ", ".join(map(str, self.splits))
            raise ValueError(f"split {split} is none of the policy's: {known}") from None
        return self.splits[min(max(place + self.moves[action], 0), len(self.splits) - 1)]


def dump_card(card: PolicyCard) -> str:
    """JSON that parses to the same card; the same card always gives the same text."""
    return msgspec.json.encode({"schema": SCHEMA, **msgspec.to_builtins(card)}, order="sorted").decode()


def parse_card(text: str) -> PolicyCard:
    """Raises BadPolicy naming the field, or the schema when it is not ours."""
    if len(text) > MOST_CARD_CHARACTERS:
        raise BadPolicy(f"policy: a card of {len(text)} characters, at most {MOST_CARD_CHARACTERS}")
    try:
        raw = msgspec.json.decode(text)
        if not isinstance(raw, dict):
            raise BadPolicy("policy: its card is no JSON object")
        schema = raw.pop("schema", None)
        if schema != SCHEMA or isinstance(schema, bool):
            raise BadPolicy(f"policy: schema is {schema!r}, this version reads {SCHEMA}; export it again")
        card = msgspec.convert(raw, PolicyCard)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise BadPolicy(f"policy: its card cannot be read: {problem}") from None
    return card.checked()


def _splits_problem(card: PolicyCard) -> str:
    splits = card.splits
    if not 2 <= card.num_layers <= MOST_SPLITS:
        return f"num_layers is {card.num_layers}, 2 to {MOST_SPLITS} are possible"
    if not splits:
        return "splits is empty: there is nothing to choose"
    if list(splits) != sorted(set(splits)):
        return f"splits {list(splits)} are not ascending"
    if splits[0] < 1 or splits[-1] >= card.num_layers:
        return f"splits {list(splits)} leave the model: 1 to {card.num_layers - 1} are possible"
    return ""


def _moves_problem(card: PolicyCard) -> str:
    if not card.moves:
        return "moves is empty: there is nothing to do"
    if len(set(card.moves)) != len(card.moves) or not all(abs(move) <= MOST_SPLITS for move in card.moves):
        return f"moves {list(card.moves)} are not distinct steps of at most {MOST_SPLITS}"
    return ""


def _observation_problem(card: PolicyCard) -> str:
    names = [feature.name for feature in card.observation]
    if "split" not in names or len(set(names)) != len(names):
        return f"observation {names} must name split, and nothing twice"
    for feature in card.observation:
        if not (_finite(feature.low) and _finite(feature.high) and feature.low <= feature.high):
            return f"observation {feature.name} goes from {feature.low} to {feature.high}"
    return ""


def _finite(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= _LARGEST
