"""`edgectl bench adaptive`: controllers of the split held against each other and against every split that stays.

All meet the same trace. A controller has a live session on real agents; its schedule is then run again in this process,
which has to give the same tokens, and scored on a fixed text. Splits that stay are scored without a cluster, all but
the best one, which runs as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.errors import ConfigError
from edgectl.adaptive_bench.damage_replay import replay
from edgectl.adaptive_bench.run import Contender, LiveRun, Trial, recorded, run_live
from edgectl.adaptive_bench.score import Offline, Quality, Scorer, mean_split, moves_of, reward
from rl.quality import QualityTable
from rl.reward import RewardWeights

Say = Callable[[str], None]
Run = Callable[[Path, Trial, Contender], LiveRun]

CONTROLLERS = ("table", "planner", "policy")
"""That `edgectl serve` knows, beside a split that stays."""
STATIC = "static"


@dataclass(frozen=True, slots=True)
class Compared:
    """One row of the comparison."""

    name: str
    quality: Quality
    mean_split: float
    moves: int
    reward: float
    run: LiveRun | None = None
    """None for a split that was scored alone, without a cluster."""
    same_tokens: bool | None = None
    """Whether the offline run of the schedule gave the session's tokens."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, and what they are held against."""

    trial: Trial
    clean: Quality
    weights: RewardWeights
    statics: Mapping[int, Quality]
    """Every split, kept throughout."""
    static_rewards: Mapping[int, float]
    best_static: int
    """In hindsight: it is chosen by the trace and the text that everyone is held against, which no controller knows."""
    rows: tuple[Compared, ...]
    """Those that ran."""


def static_table(table: QualityTable, split: int) -> QualityTable:
    """A table of one split: whoever looks into it has nothing to choose. Raises ConfigError for a split not in it."""
    records = tuple(record for record in table.records if record.split == split)
    if not records:
        raise ConfigError(f"split {split} is not in the quality table: {', '.join(map(str, table.splits))}")
    return replace(table, records=records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrants:
    """Who is compared, and by what."""

    names: tuple[str, ...]
    """Of CONTROLLERS and STATIC."""
    table: QualityTable
    policy: Path | None = None
    weights: RewardWeights = field(default_factory=RewardWeights)


def contenders(names: Sequence[str], quality: Path, policy: Path | None) -> list[Contender]:
    """Controllers by name and how they are served. Raises ConfigError for an unknown name, or a policy without file."""
    found = []
    for name in names:
        if name not in CONTROLLERS:
            raise ConfigError(f"controller {name!r} is none of {', '.join((STATIC, *CONTROLLERS))}")
        if name == "policy" and policy is None:
            raise ConfigError("controller policy: name its .onnx file with --policy, or leave it out of --controllers")
        file = policy if name == "policy" else quality
        found.append(Contender(name, ("--policy", str(file), "--controller", name)))
    return found


def compare(
    directory: Path, trial: Trial, entrants: Entrants, offline: Offline, *, say: Say, run: Run = run_live
) -> Comparison:
    """Runs the controllers named on clusters below `directory` and scores what they did.

    Raises ConfigError, CommandFailure, ProcessFailed.
    """
    table, names = entrants.table, entrants.names
    quality = directory / "quality.json"
    quality.write_text(table.to_json(), encoding="utf-8")
    live = contenders([name for name in names if name != STATIC], quality, entrants.policy)
    scorer = Scorer(offline, trial.channel, trial.codec)
    clean = scorer.clean()
    statics = {split: scorer.under(((0, split),)) for split in table.splits}
    judge = _Judge(offline, scorer, entrants.weights, {split: each.ppl for split, each in statics.items()})
    rewards = judge.static_rewards()
    # One without a perplexity is never the best.
    best = max(rewards, key=lambda split: -math.inf if math.isnan(rewards[split]) else rewards[split])
    say(f"clean {clean.ppl:.2f}; of splits that stay {best} is best, with {statics[best].ppl:.2f}")
    if STATIC in names:
        file = directory / f"static-{best}.json"
        file.write_text(static_table(table, best).to_json(), encoding="utf-8")
        live.insert(0, Contender(STATIC, ("--policy", str(file), "--controller", STATIC), best))
    rows = []
    for contender in live:
        say(f"{contender.name}: {trial.tokens} tokens on two agents")
        rows.append(judge.row(trial, run(directory / contender.name, trial, contender)))
    return Comparison(trial, clean, entrants.weights, statics, rewards, best, tuple(rows))


@dataclass(frozen=True, slots=True)
class _Judge:
    """Makes rows of runs."""

    offline: Offline
    scorer: Scorer
    weights: RewardWeights
    statics: Mapping[int, float]

    def static_rewards(self) -> dict[int, float]:
        """Of every split, when it is kept."""
        return {split: reward(ppl, self.statics, split, self.weights) for split, ppl in self.statics.items()}

    def row(self, trial: Trial, ran: LiveRun) -> Compared:
        again = tuple(replay(self.offline.executor, recorded(trial, ran.schedule), self.offline.receiver))
        found = self.scorer.under(ran.schedule)
        split = mean_split(ran.schedule, trial.positions)
        worth = reward(found.ppl, self.statics, split, self.weights)
        name = ran.contender.name
        return Compared(name, found, split, moves_of(ran.schedule), worth, ran, same_tokens=again == ran.tokens)
