"""A comparison of controllers whose sessions are scripted: no agents, an executor of exact integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.compute.receiver import Receiver
from edgectl.adaptive_bench.bench import Comparison, Entrants, Run, compare
from edgectl.adaptive_bench.damage_replay import Schedule, replay
from edgectl.adaptive_bench.run import Contender, LiveRun, Trial, recorded
from edgectl.adaptive_bench.score import Offline
from edgectl.model_source import LocatedModel
from planner.channel import Channel, ChannelState
from planner.types import LayerRange
from rl.quality import QualityRecord, QualityTable
from tests.fakes.fake_executor import VOCABULARY, FakeExecutor

LAYERS = 6
SPLITS = (2, 4)
CHANNEL = Channel((ChannelState(loss=0.3, m=0.9), ChannelState(), ChannelState(loss=0.1, m=1.5)), seed=5)


def table() -> QualityTable:
    records = tuple(
        QualityRecord(split, loss, 0.0, "element", "rescale", "fp16", (50.0 + split + 100 * loss,), 64)
        for split in SPLITS
        for loss in (0.0, 0.3)
    )
    return QualityTable("fake", "", LAYERS, 8, records)


def trial() -> Trial:
    return Trial(model=LocatedModel("fake", Path("fake")), channel=CHANNEL, prompt=(1, 2, 3), tokens=14)


def offline() -> Offline:
    executor = FakeExecutor(LAYERS, (LayerRange(0, LAYERS),), slots=1, context=32)
    return Offline(executor, Receiver(), np.random.default_rng(0).integers(0, VOCABULARY, (4, 8)), 2)


SCHEDULES: dict[str, Schedule] = {
    "static": ((0, 2),),
    "table": ((0, 4), (7, 2)),
    "policy": ((0, 4), (7, 2), (12, 4)),
}


def scripted(*, lies: bool = False) -> tuple[list[Contender], Run]:
    """A run that gives the tokens of its schedule, or others."""
    seen: list[Contender] = []

    def run(directory: Path, trial: Trial, contender: Contender) -> LiveRun:
        seen.append(contender)
        schedule = SCHEDULES[contender.name]
        tokens = tuple(replay(offline().executor, recorded(trial, schedule)))
        tokens = (*tokens[:-1], (tokens[-1] + 1) % VOCABULARY) if lies else tokens
        return LiveRun(contender, tokens, (10.0, 12.0, 11.0, 90.0), schedule, {"moves": {"moved": 1}})

    return seen, run


def compared(directory: Path, *names: str, lies: bool = False) -> Comparison:
    """Of all three, or of those named."""
    _, run = scripted(lies=lies)
    entrants = Entrants(names=names or ("static", "table", "policy"), table=table(), policy=Path("p.onnx"))
    return compare(directory, trial(), entrants, offline(), say=lambda _: None, run=run)
