"""A grid on real agents: the same numbers as here, one that dies amid it, one without the model, none at all."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from agent.wire.measure_messages import MeasureQuality
from agent.wire.message import Message
from agent.wire.messages import ToAgent, decode, encode
from edgectl.config import ClusterConfig, load_config
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.quality.cluster import run_spread, spread_for
from edgectl.quality.collect import CollectSettings, collect, collect_records
from edgectl.quality.file import Measurement
from edgectl.quality.perplexity import MeasuredText, find_subject
from edgectl.quality.points import ChannelKind, ModelKind, QualityPoint, Runs, channel_of, grid
from planner.channel import MAX_STATES, Channel, erasing
from tests.fakes.cluster_processes import ClusterProcesses
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.quality_devices import RUNS, Bench, answer_to, hello, perplexity_at

SETTINGS = CollectSettings(
    model=str(MODEL_DIR),
    points=grid((4, 16, 31), (0.0, 0.2), (0.0, 1.0)),
    text=MeasuredText(tokens=128, window=64),
    runs=Runs(count=2),
)


def quietly(done: int, total: int) -> None:
    """Progress nobody looks at."""


def config_of(cluster: ClusterProcesses) -> ClusterConfig:
    return load_config(cluster.cluster, {})


@pytest.mark.cluster
def test_agents_measure_what_this_machine_would_and_one_may_die(tmp_path: Path) -> None:
    here = collect(SETTINGS, None, quietly)
    killed = []

    def kill_one(done: int, total: int) -> None:
        if done == 4 and not killed:
            worker = psutil.Process(cluster.agents["b"].process.pid).children()[0]
            killed.append(os.kill(worker.pid, signal.SIGKILL))

    with ClusterProcesses(tmp_path, ("a", "b")) as cluster:
        for name in cluster.devices:
            cluster.agent(name)
        out = tmp_path / "grid.jsonl"
        there = collect(SETTINGS, out, kill_one, config_of(cluster), wait_s=60.0)
        assert killed
        assert there == here
        more = replace(SETTINGS, points=grid((4, 31), (0.0, 0.2, 0.3), (0.0, 1.0)))
        assert collect(more, out, quietly, config_of(cluster), wait_s=60.0).losses == (0.0, 0.2, 0.3)


@pytest.mark.cluster
def test_without_the_model_a_device_says_so_and_nothing_is_lost(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, ("a",)) as cluster:
        cluster.agent("a", models_dir=tmp_path)
        out = tmp_path / "grid.jsonl"
        with pytest.raises(
            CommandFailure, match=r"21 runs are left and no device can do them\n  a: a: .*wiki-32l"
        ) as failed:
            collect_records(SETTINGS, out, quietly, config_of(cluster), wait_s=60.0)
        assert failed.value.exit_code is ExitCode.UNAVAILABLE
        assert len(out.read_bytes().splitlines()) == 1


def test_nobody_comes_and_nobody_is_listed(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, ("a",)) as cluster, pytest.raises(CommandFailure, match="none has connected"):
        collect_records(SETTINGS, None, quietly, config_of(cluster), wait_s=0.0)
    with pytest.raises(CommandFailure, match="lists no device"):
        collect_records(SETTINGS, None, quietly, ClusterConfig())


class Wire:
    """A ControlServer whose devices answer every request at once; one of them says garbage first."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[tuple[bytes, str, bytes]] = asyncio.Queue()
        self.inbox.put_nowait((b"a", "a", b"garbage"))
        for name in ("a", "b"):
            self.say(name, hello(name))

    def say(self, name: str, message: Message) -> None:
        self.inbox.put_nowait((name.encode(), name, encode(message)))

    async def receive(self) -> tuple[bytes, str, bytes]:
        return await self.inbox.get()

    async def send(self, origin: bytes, data: bytes) -> bool:
        message = decode(data, ToAgent)
        if isinstance(message, MeasureQuality):
            for index in range(len(message.channels)):
                self.say(origin.decode(), answer_to(message, index))
        return True


def test_over_bytes_everything_arrives_once() -> None:
    added: list[Measurement] = []
    asyncio.run(run_spread(Bench(most_runs=4, wait_s=math.inf).spread, Wire(), added.append))
    assert sorted((each.point, each.run) for each in added) == sorted(RUNS)
    assert all(each.perplexity == perplexity_at(each.point, each.run) for each in added)


def test_requests_of_fading_channels_fit_a_control_message() -> None:
    subject = find_subject(SETTINGS.model, ModelKind(), MeasuredText(tokens=MAX_STATES, window=256))
    (point,) = grid((4,), (0.1,), (5.0,), fading="nakagami")
    missing = [(point, run) for run in range(5)]

    def channel_for(point: QualityPoint, run: int) -> Channel:
        return channel_of(point, ChannelKind(), Runs(), run, subject.text.tokens)

    spread = spread_for(ClusterConfig(), subject, channel_for, missing, 1.0)
    units = list(spread.units)
    assert [run for unit in units for run in unit.runs] == missing
    assert len(units) == 3
    for unit in units:
        request = spread.request_for(1, unit)
        assert decode(encode(request), ToAgent) == request


def test_a_text_too_long_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgectl.quality.cluster.MAX_QUALITY_TOKENS", 127)
    subject = find_subject(SETTINGS.model, ModelKind(), SETTINGS.text)
    with pytest.raises(CommandFailure, match="128 tokens: agents take at most 127"):
        spread_for(ClusterConfig(), subject, lambda point, run: erasing(0.1), RUNS, 1.0)
