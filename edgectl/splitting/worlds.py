"""The worlds of the splitting study: which gain, channel and moves a run is trained and valued in.

Everything that two processes must agree on is a file of the study's folder: the model's quality table and a surrogate
per world. Training may be rewarded by a surrogate; what a policy is worth is always read off the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ConfigError
from edgectl.splitting.runs import Reward, RunSpec, World

if TYPE_CHECKING:
    from rl.quality import Gain, QualityTable
    from rl.reward import RewardWeights
    from rl.split_world import SplitWorld

TABLE_FILE = "quality.json"
SURROGATE_FILES: Mapping[World, str] = {"authors": "surrogate-authors.json", "model": "surrogate-model.json"}
QUALITY_WEIGHT = 4.0
"""Of the model's own worlds. The authors' 10 balances a surface where ten layers change the perplexity by a tenth;
where they change it by half, the deepest split would be best at every channel."""
HARDER_HORIZON = 20
"""Steps of an episode where moving costs: long enough for a move to pay."""


@dataclass(frozen=True)
class Inputs:
    """What training reads."""

    model: str
    """Directory of the model, for rewards that are measured."""
    table: QualityTable
    surrogates: Mapping[World, Gain]

    @classmethod
    def load(cls, folder: Path, model: str) -> Inputs:
        """Raises ConfigError for files that are missing, and BadQualityTable, BadSurrogate for what is in them."""
        from rl.quality import QualityTable
        from rl.surrogate import parse_surrogate

        table = QualityTable.from_json(_read(folder / TABLE_FILE))
        surrogates = {world: parse_surrogate(_read(folder / name)) for world, name in SURROGATE_FILES.items()}
        return cls(model, table, surrogates)

    @property
    def table_tokens(self) -> int:
        """Tokens of text that every perplexity of the table was measured on."""
        scored = self.table.records[0].tokens
        return scored + scored // (self.table.window - 1)

    def gain(self, world: World, reward: Reward) -> Gain:
        """What rewards of a world come from; for measured perplexities see `truth`."""
        from rl.authors_table import authors_gain

        if reward == "surrogate":
            return self.surrogates["model" if world == "harder" else world]
        return authors_gain() if world == "authors" else self.table.gain


def world_of(spec: RunSpec, gain: Gain, table: QualityTable) -> SplitWorld:
    """The world of a run, its rewards from this gain."""
    from rl.split_world import ACTIONS_3, ACTIONS_5, ACTIONS_9, AuthorsWorld, ChannelWorld

    actions = {3: ACTIONS_3, 5: ACTIONS_5, 9: ACTIONS_9}[spec.actions]
    if spec.world == "authors":
        return AuthorsWorld(gain, case=spec.case, actions=actions)
    if spec.world == "model":
        return ChannelWorld(
            gain, sigmas=table.sigmas, actions=actions, splits=table.splits, weights=weights_of(spec.world)
        )
    from rl.harder_world import HarderWorld, Radio
    from rl.split_costs import SplitCosts

    # Quality is the model's own; milliseconds, joules and bytes are those of a model whose moves cost something.
    return HarderWorld(
        gain,
        radio=Radio(sigma_at_0_db=max(table.sigmas)),
        costs=SplitCosts.of_edgeshard(table.splits),
        weights=weights_of(spec.world),
        actions=actions,
        splits=table.splits,
        horizon=HARDER_HORIZON,
        frames=spec.history,
    )


def weights_of(world: World) -> RewardWeights:
    """Of a world's rewards."""
    from rl.harder_world import HARDER_WEIGHTS
    from rl.reward import RewardWeights

    if world == "authors":
        return RewardWeights()
    return replace(HARDER_WEIGHTS if world == "harder" else RewardWeights(), quality=QUALITY_WEIGHT)


def true_world(spec: RunSpec, inputs: Inputs) -> SplitWorld:
    """The world that a run's policy is valued in."""
    return world_of(spec, inputs.gain(spec.world, "table"), inputs.table)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"--out {path}: {problem.strerror}") from problem
