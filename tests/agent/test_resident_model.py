"""What a worker's model says to its supervisor: loaded, the same again, from another source, failed, superseded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from agent.compute.model_digest import model_digest
from agent.config import AgentConfig
from agent.resident_model import ResidentModel
from agent.wire.addresses import BulkSource
from agent.wire.measure_messages import (
    DeviceMeasured,
    MeasureDevice,
    MeasureProgress,
    MeasureQuality,
    QualityMeasured,
)
from agent.wire.messages import Failed, Load, Loaded, LoadProgress
from agent.worker_channel import ChannelClosed, FromWorker, Stop, WorkerChannel
from planner.channel import erasing
from planner.types import LayerRange
from tests.fakes.agent_process import MODELS

MODEL = "wiki-32l"


@dataclass
class Bench:
    model: ResidentModel
    supervisor: WorkerChannel
    request: Load
    reports: list[str] = field(default_factory=list)

    def said(self) -> list[object]:
        return list(self.supervisor.receive(FromWorker))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    config = AgentConfig(
        name="d1",
        coordinator="tcp://127.0.0.1:1",
        coordinator_key="",
        models_dir=MODELS,
        cache_dir=tmp_path,
        threads=1,
        provider="cpu",
    )
    ends = socket.socketpair()
    with closing(WorkerChannel(ends[0])) as supervisor, closing(WorkerChannel(ends[1])) as worker:
        reports: list[str] = []
        model = ResidentModel(config, worker, reports.append)
        digest = model_digest(MODELS / MODEL, tmp_path)
        request = Load(MODEL, digest, ((0, 2),), "fp32", 32, "fp16", 3, 128)
        yield Bench(model, supervisor, request, reports)
        model.unload()


def test_it_loads_and_tells_and_unloads(bench: Bench) -> None:
    assert bench.model.executor is None
    assert bench.model.load(bench.request)
    *progress, loaded = bench.said()
    assert progress
    assert all(isinstance(message, LoadProgress) for message in progress)
    assert isinstance(loaded, Loaded)
    assert (loaded.digest, loaded.memory_bytes) == (bench.request.digest, bench.model.memory_bytes)
    assert bench.reports[-1].startswith("loading layers")
    shape = bench.model.shape
    assert (shape.num_layers, shape.slots, shape.context, shape.resident) == (32, 3, 128, (LayerRange(0, 2),))
    bench.model.unload()
    bench.model.unload()
    assert (bench.model.executor, bench.model.memory_bytes) == (None, 0)


def test_where_it_could_be_fetched_from_makes_no_other_model(bench: Bench) -> None:
    assert not bench.model.has(bench.request)
    bench.model.load(bench.request)
    assert bench.model.has(msgspec.structs.replace(bench.request, sources=(BulkSource("", "tcp://h:1", "k"),)))
    assert not bench.model.has(msgspec.structs.replace(bench.request, slots=4))


def test_a_load_that_fails_says_why_and_leaves_nothing(bench: Bench) -> None:
    assert not bench.model.load(msgspec.structs.replace(bench.request, model="nowhere"))
    (failed,) = bench.said()
    assert isinstance(failed, Failed)
    assert (failed.request, failed.code) == ("load", "model_not_found")
    assert failed.detail.startswith("d1: ")
    assert bench.model.executor is None


def measurement(seconds: float) -> MeasureDevice:
    config = (MODELS / MODEL / "config.json").read_text(encoding="utf-8")
    return MeasureDevice(9, MODEL, config, "fp32", 32, "fp16", (1,), (8,), (16,), seconds)


def test_a_measurement_ends_with_its_profile_or_with_the_next_request(bench: Bench) -> None:
    bench.model.measure(measurement(0.1))
    *progress, measured = bench.said()
    assert all(isinstance(message, MeasureProgress) for message in progress)
    assert isinstance(measured, DeviceMeasured)
    assert measured.request == 9
    bench.supervisor.send(Stop())
    bench.model.measure(measurement(600.0))
    assert not any(isinstance(message, (DeviceMeasured, Failed)) for message in bench.said())
    bench.model.measure(msgspec.structs.replace(measurement(0.1), rows=(99,)))
    failed = bench.said()[-1]
    assert isinstance(failed, Failed)
    assert (failed.request, failed.code) == ("measure-device", "bad_config")


def test_without_a_supervisor_it_gives_up(bench: Bench) -> None:
    bench.supervisor.close()
    with pytest.raises(ChannelClosed):
        bench.model.load(bench.request)
    with pytest.raises(ChannelClosed):
        bench.model.measure(measurement(0.1))


def test_perplexities_are_told_one_by_one_until_another_request_comes(bench: Bench) -> None:
    channels = (erasing(0.1, 1), erasing(0.1, 2))
    digest = bench.request.digest
    request = MeasureQuality(7, MODEL, digest, 32, "fp32", 32, "fp16", "fp16", 8, tuple(range(2, 18)), 4, channels)
    bench.model.measure_quality(request)
    said = bench.said()
    answers = [message for message in said if isinstance(message, QualityMeasured)]
    assert [(answer.request, answer.index) for answer in answers] == [(7, 0), (7, 1)]
    assert all(isinstance(message, (MeasureProgress, QualityMeasured)) for message in said)
    assert bench.model.executor is None
    bench.model.measure_quality(msgspec.structs.replace(request, split=32))
    (failed,) = bench.said()
    assert isinstance(failed, Failed)
    assert (failed.request, failed.code) == ("measure-quality", "bad_config")
    bench.supervisor.send(Stop())
    bench.model.measure_quality(request)
    assert not any(isinstance(message, (QualityMeasured, Failed)) for message in bench.said())
