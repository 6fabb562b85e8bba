"""A session of `edgectl bench adaptive`: two real agents, an emulated radio between them, one controller of the split.

Each controller has a cluster of its own, fresh, and one session on it, whose damage schedule the coordinator tells
afterwards. Everything that is decided is a function of positions, so a run on another machine moves at other times only
where a move took longer there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.config import toml_text
from agent.wire.messages import Sampling
from edgectl.adaptive_bench.damage_replay import RecordedSession, Schedule, check_schedule
from edgectl.failures import ExitCode
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from edgectl.model_source import LocatedModel
from edgectl.output import CommandFailure
from edgectl.planning import ServingOptions
from planner.channel import Channel
from planner.types import Codec
from rl.trace import dump_trace

SOURCE, EDGE = "device", "edge"
"""The two agents: the one that has the tokens, and the one behind the radio."""
READY_PATIENCE_S = 120.0
STATUS_PATIENCE_S = 10.0
"""A session's schedule is there when the coordinator has heard of its end."""
LONGEST_GAP_MEDIANS, LONGEST_GAP_MS = 3.0, 50.0
"""What a move may cost a reader: the longest gap between tokens is at most so many medians and milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What every controller meets."""

    model: LocatedModel
    channel: Channel
    prompt: tuple[int, ...]
    tokens: int
    """That the session generates."""
    codec: Codec = "fp16"
    latency_ms: float = 5.0
    """Of the radio, one way."""
    rate: str = ""
    """Of the radio, like "20 Mbit"; empty: no limit."""
    options: ServingOptions = field(default_factory=ServingOptions)

    @property
    def positions(self) -> int:
        """Tokens whose hidden states cross the radio: all but the last one."""
        return len(self.prompt) + self.tokens - 1


@dataclass(frozen=True, slots=True)
class Contender:
    """A controller, and how `edgectl serve` is told to use it."""

    name: str
    serve: tuple[str, ...]
    split: int | None = None
    """Of one that never moves."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One session under one controller."""

    contender: Contender
    tokens: tuple[int, ...]
    gaps_ms: tuple[float, ...]
    """Between tokens as a client saw them."""
    schedule: Schedule
    adaptive: Mapping[str, Any]
    """What status said of the controller when the session had ended."""

    @property
    def ms_per_token(self) -> float:
        return statistics.median(self.gaps_ms)

    @property
    def longest_gap_ms(self) -> float:
        return max(self.gaps_ms)

    @property
    def is_smooth(self) -> bool:
        """No gap is longer than a move may make it."""
        return self.longest_gap_ms <= LONGEST_GAP_MEDIANS * self.ms_per_token + LONGEST_GAP_MS


def links_toml(trial: Trial, trace: str) -> str:
    """Both directions of the radio; what is lost is lost on the way to the edge."""
    tables = []
    for ends, channel in (((SOURCE, EDGE), {"channel": trace}), ((EDGE, SOURCE), {})):
        rate = {"rate": trial.rate} if trial.rate else {}
        table = toml_text({"from": ends[0], "to": ends[1], **rate, **channel})
        tables.append(f"[[links]]\n{table}latency_ms = {trial.latency_ms!r}\n")
    return "\n".join(tables)


def run_live(directory: Path, trial: Trial, contender: Contender) -> LiveRun:
    """A cluster below `directory` and one session on it. Raises ProcessFailed, CommandFailure."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "trace.json").write_text(dump_trace(trial.channel), encoding="utf-8")
    with Processes(directory) as processes:
        cluster = LocalCluster(directory, processes)
        for name in (SOURCE, EDGE):
            cluster.add_device(name, trial.model.directory.parent, {"log_level": "warning", "threads": 1})
        cluster.append(links_toml(trial, "trace.json"))
        cluster.start_coordinator(trial.model.directory, [*_serve(trial), *contender.serve])
        for name in (SOURCE, EDGE):
            cluster.start_device(name)
        cluster.wait_until_ready(READY_PATIENCE_S)
        tokens, arrived_s = _stream(cluster, trial)
        status = cluster.wait(lambda found: bool(found.get("schedules")), STATUS_PATIENCE_S)
    if len(tokens) != trial.tokens:
        raise CommandFailure(
            ExitCode.FAILURE, f"{contender.name}: {len(tokens)} tokens came, {trial.tokens} were asked for"
        )
    gaps_ms = tuple(1e3 * (after - before) for before, after in pairwise(arrived_s))
    return LiveRun(contender, tokens, gaps_ms, schedule_of(status), status.get("adaptive") or {})


def schedule_of(status: Mapping[str, Any]) -> Schedule:
    """Of the session that ended last. Raises CommandFailure for a status that tells none."""
    try:
        schedule = tuple((int(position), int(split)) for position, split in status["schedules"][-1]["schedule"])
        check_schedule(schedule)
    except (LookupError, TypeError, ValueError) as problem:
        raise CommandFailure(ExitCode.FAILURE, f"the coordinator told no damage schedule: {problem!r}") from problem
    return schedule


def _serve(trial: Trial) -> list[str]:
    options = trial.options
    chosen = {
        "--source": SOURCE,
        "--sessions": "1",
        "--codec": trial.codec,
        "--quantize": options.quantization,
        "--boundary": options.boundary,
        "--context": str(trial.positions + 1),
    }
    return [word for pair in chosen.items() for word in pair]


def _stream(cluster: LocalCluster, trial: Trial) -> tuple[tuple[int, ...], list[float]]:
    """Tokens, and when each came."""
    body = {
        "model": trial.model.name,
        "prompt": list(trial.prompt),
        "max_tokens": trial.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    tokens: list[int] = []
    arrived_s: list[float] = []
    for choice in cluster.stream(body):
        now_s = time.monotonic()
        tokens += choice.get("token_ids") or ()
        arrived_s += [now_s] * (len(tokens) - len(arrived_s))
    return tuple(tokens), arrived_s


def recorded(trial: Trial, schedule: Schedule) -> RecordedSession:
    """The trial's session, to be run again."""
    return RecordedSession(
        prompt=trial.prompt,
        max_tokens=trial.tokens,
        sampling=Sampling(temperature=0.0),
        schedule=schedule,
        channel=trial.channel,
        codec=trial.codec,
    )
