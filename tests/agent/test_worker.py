"""Real agents and a real model over real sockets: load, open, run, refuse, and go on after whatever was wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from agent.compute.model_digest import model_digest
from agent.supervisor import STOP_S
from agent.wire import messages
from agent.wire.addresses import PeerKey, StageAddress
from agent.wire.measure_messages import DeviceMeasured, MeasureDevice, MeasureLink, MeasureProgress
from agent.wire.messages import (
    CancelSession,
    CloseMicroBatch,
    CoordinatorAlive,
    Failed,
    Load,
    Loaded,
    LoadProgress,
    MicroBatchClosed,
    MicroBatchOpened,
    OpenMicroBatch,
    OpenSession,
    ResumeEvents,
    Sampling,
    SessionEnded,
    SessionFailed,
    TokenEvent,
    Unload,
    Welcome,
    WorkerRestarted,
)
from agent.wire.security import generate_keys
from tests.fakes import tegrastats
from tests.fakes.agent_process import MODELS, AgentProcess, Coordinator, agent, is_alive, wait_until

MODEL = "wiki-32l"
PROMPT = tuple(range(100, 120))
SAMPLING = Sampling(seed=5, temperature=0.8)

Scenario = Callable[[Coordinator, list[AgentProcess]], Awaitable[None]]


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_digest(MODELS / MODEL, tmp_path_factory.mktemp("digests"))


def play(directory: Path, scenario: Scenario, names: Sequence[str] = ("d1",), **settings: Any) -> None:
    """A coordinator and agents of these names, connected; all of them end well afterwards."""

    async def everything() -> None:
        with closing(Coordinator()) as coordinator, ExitStack() as running:
            agents = []
            for name in names:
                one = running.enter_context(
                    agent(directory / name, name, coordinator.endpoint, coordinator.keys.public, **settings)
                )
                coordinator.allowed.allow(one.public_key, name)
                agents.append(one)
            await coordinator.welcome(*agents)
            await scenario(coordinator, agents)
            for one in agents:
                assert one.stop()[0] == 0
                assert "Traceback" not in one.log()

    asyncio.run(everything())


def load(digest: str, start: int = 0, stop: int = 32) -> Load:
    return Load(MODEL, digest, ((start, stop),), "fp32", 32, "fp16", 2, 128)


def opening(
    coordinator: Coordinator, agents: list[AgentProcess], cuts: Sequence[int], epoch: int = 1
) -> OpenMicroBatch:
    edges = [0, *cuts, 32]
    stages = tuple(
        StageAddress(one.name, coordinator.hellos[one.name].data_endpoint, one.public_key, edges[i], edges[i + 1])
        for i, one in enumerate(agents)
    )
    return OpenMicroBatch(1, epoch, 1, 8, "fp16", stages)


async def open_route(coordinator: Coordinator, agents: list[AgentProcess], digest: str, cuts: Sequence[int]) -> None:
    edges = [0, *cuts, 32]
    for index, one in enumerate(agents):
        await coordinator.tell(one.name, load(digest, edges[index], edges[index + 1]))
    for one in agents:
        loaded = await coordinator.next(Loaded, one.name)
        assert (loaded.model, loaded.digest, loaded.batch_invariant) == (MODEL, digest, True)
    for one in agents:
        await coordinator.tell(one.name, opening(coordinator, agents, cuts))
    for one in agents:
        assert await coordinator.next(MicroBatchOpened, one.name) == MicroBatchOpened(1, 1)


async def tokens_of(coordinator: Coordinator, name: str, count: int, first: int = 0) -> list[int]:
    events = [await coordinator.next(TokenEvent) for _ in range(count)]
    assert [(event.session, event.index) for event in events] == [(name, first + index) for index in range(count)]
    return [event.token for event in events]


def test_a_session_runs_from_load_to_unload(tmp_path: Path, digest: str) -> None:
    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        worker = psutil.Process(agents[0].worker())
        await open_route(coordinator, agents, digest, ())
        progress = await coordinator.next(LoadProgress)
        assert (progress.model, progress.layers_total) == (MODEL, 32)
        await coordinator.tell_worker("d1", CoordinatorAlive())
        await coordinator.tell_worker("d1", OpenSession("s1", 1, PROMPT, 12, SAMPLING))
        tokens = await tokens_of(coordinator, "s1", 12)
        assert await coordinator.next(SessionEnded) == SessionEnded("s1", "length", 12)

        await coordinator.tell_worker("d1", ResumeEvents("s1", 10))
        assert await tokens_of(coordinator, "s1", 2, first=10) == tokens[10:]
        await coordinator.next(SessionEnded)

        await coordinator.tell_worker("d1", OpenSession("s2", 1, PROMPT, 12, SAMPLING, emitted=tuple(tokens[:5])))
        assert await tokens_of(coordinator, "s2", 7, first=5) == tokens[5:]
        await coordinator.next(SessionEnded)

        await coordinator.tell_worker("d1", OpenSession("s3", 1, PROMPT, 100, SAMPLING))
        await coordinator.next(TokenEvent)
        await coordinator.tell_worker("d1", CancelSession("s3"))
        assert (await coordinator.next(SessionEnded)).reason == "cancelled"

        await coordinator.tell("d1", load(digest))
        assert (await coordinator.next(Loaded)).seconds == 0.0, "the same model is not loaded twice"
        await coordinator.tell("d1", CloseMicroBatch(1))
        await coordinator.next(MicroBatchClosed)
        mapped = {region.path for region in worker.memory_maps()}
        assert any("/onnxruntime/" in path for path in mapped)
        assert not any(f"/{heavy}/" in path for path in mapped for heavy in ("torch", "transformers"))

        await coordinator.tell("d1", Unload())
        await coordinator.tell("d1", opening(coordinator, agents, ()))
        assert "nothing is loaded" in (await coordinator.next(Failed)).detail

    play(tmp_path, scenario)


def test_two_agents_give_the_tokens_of_one(tmp_path: Path, digest: str) -> None:
    tokens: dict[int, list[int]] = {}

    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        cuts = (13,) if len(agents) == 2 else ()
        await open_route(coordinator, agents, digest, cuts)
        await coordinator.tell_worker("d1", OpenSession("s1", 1, PROMPT, 16, SAMPLING))
        tokens[len(agents)] = await tokens_of(coordinator, "s1", 16)
        for one in agents:
            counters: dict[str, int] = {}
            while counters.get("frames_sent", 0) < 15 and len(agents) == 2:
                await coordinator.next(messages.Heartbeat, one.name)
                counters = coordinator.telemetry[one.name].counters
            assert not any("refused" in name for name in counters)

    play(tmp_path / "one", scenario)
    play(tmp_path / "two", scenario, ("d1", "d2"))
    assert tokens[1] == tokens[2]


def test_after_a_worker_died_in_mid_session_the_route_serves_again(tmp_path: Path, digest: str) -> None:
    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        await open_route(coordinator, agents, digest, (13,))
        await coordinator.tell_worker("d1", OpenSession("s1", 1, PROMPT, 100, SAMPLING))
        await coordinator.next(TokenEvent)
        os.kill(agents[1].worker(), signal.SIGKILL)
        restarted = await coordinator.next(messages.WorkerRestarted)
        await coordinator.next(messages.WorkerHello, "d2")
        hello = coordinator.hellos["d2"]
        coordinator.hellos["d2"] = msgspec.structs.replace(hello, data_endpoint=restarted.data_endpoint)
        # No second Welcome: the new worker has the list of devices from its supervisor.
        await coordinator.tell("d2", load(digest, 13, 32))
        await coordinator.next(Loaded, "d2")
        for one in agents:
            await coordinator.tell(one.name, opening(coordinator, agents, (13,), epoch=2))
        for one in agents:
            assert await coordinator.next(MicroBatchOpened, one.name) == MicroBatchOpened(1, 2)
        assert (await coordinator.next(SessionEnded)).session == "s1"
        await coordinator.tell_worker("d1", OpenSession("s2", 1, PROMPT, 4, SAMPLING))
        assert await coordinator.next(SessionEnded) == SessionEnded("s2", "length", 4)

    play(tmp_path, scenario, ("d1", "d2"))


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": "nowhere"}, "model_not_found", ("nowhere",)),
        ({"digest": "f" * 64}, "model_mismatch", ("f" * 12, MODEL)),
        ({"context": 1 << 20}, "bad_config", ("context 1048576",)),
        ({"resident": ((0, 99),)}, "bad_config", ("32 layers",)),
        ({"slots": 64}, "out_of_memory", ("MiB short", "layers [0, 32)")),
    ],
)
def test_a_load_that_cannot_be_is_told_and_named(
    tmp_path: Path, digest: str, changes: dict[str, Any], code: str, words: tuple[str, ...]
) -> None:
    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        await coordinator.tell("d1", msgspec.structs.replace(load(digest), **changes))
        failed = await coordinator.next(Failed)
        assert (failed.request, failed.code) == ("load", code)
        assert failed.detail.startswith("d1: ")
        for part in words:
            assert part in failed.detail

    play(tmp_path, scenario, memory_limit="64 MiB")


def test_another_devices_bad_address_or_key_costs_no_process(tmp_path: Path, digest: str) -> None:
    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        worker = agents[0].worker()
        await coordinator.tell("d1", load(digest, 0, 2))
        await coordinator.next(Loaded)
        bad = [
            (endpoint, generate_keys().public) for endpoint in ("tcp://no such host:1", "ipc:///tmp/x", "inproc://x")
        ]
        for endpoint, key in (*bad, ("tcp://127.0.0.1:9;127.0.0.1:1", bad[0][1]), ("tcp://127.0.0.1:1", "short")):
            stages = (
                StageAddress("d1", "tcp://127.0.0.1:1", agents[0].public_key, 0, 2),
                StageAddress("d2", endpoint, key, 2, 32),
            )
            await coordinator.tell("d1", OpenMicroBatch(1, 1, 2, 8, "fp16", stages))
            failed = await coordinator.next(Failed)
            assert (failed.request, failed.code, failed.micro_batch) == ("open-micro-batch", "bad_config", 1)
            await coordinator.tell("d1", MeasureLink(1, "d2", endpoint, key, ((1, 64),), "fp16", 1.0))
            failed = await coordinator.next(Failed)
            assert (failed.request, failed.code) == ("measure-link", "bad_config")
        await coordinator.tell("d1", Welcome(1, "0.0.0", (PeerKey("d2", "short"),)))
        assert (await coordinator.next(Failed)).request == "welcome"
        # Both slots are free again, and it is still the same worker.
        good = StageAddress("d2", "tcp://127.0.0.1:1", generate_keys().public, 2, 32)
        await coordinator.tell("d1", OpenMicroBatch(2, 1, 2, 8, "fp16", (stages[0], good)))
        assert await coordinator.next(MicroBatchOpened) == MicroBatchOpened(2, 1)
        assert agents[0].worker() == worker

    play(tmp_path, scenario)


def test_nonsense_from_the_coordinator_is_logged(tmp_path: Path) -> None:
    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        await coordinator.tell_worker("d1", Unload())
        await coordinator.tell_worker("d1", messages.Rejected("not_authorized", "another d1 is here"))
        await coordinator.tell_worker("d1", OpenSession("s", 9, PROMPT, 1, SAMPLING))
        failed = await coordinator.next(SessionFailed)
        assert failed.code == "unknown_micro_batch"
        wait_until(lambda: "another d1 is here" in agents[0].log(), "the rejection is in the log")
        assert "bad_control_message" in agents[0].log()

    play(tmp_path, scenario)


def test_a_device_is_measured_and_nothing_stays_loaded(tmp_path: Path, digest: str) -> None:
    config = (MODELS / MODEL / "config.json").read_text(encoding="utf-8")
    request = MeasureDevice(9, MODEL, config, "fp32", 32, "fp16", (1, 2), (8,), (16,), 0.3)

    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        await open_route(coordinator, agents, digest, ())
        await coordinator.tell("d1", request)
        progress = await coordinator.next(MeasureProgress)
        assert (progress.done, progress.what) == (0, "loading layers [0, 8) and [8, 32)")
        measured = await coordinator.next(DeviceMeasured)
        assert measured.request == 9
        profile = measured.profile
        assert (profile.name, profile.host) == ("d1", coordinator.hellos["d1"].boot_id)
        assert {(point.rows, point.context) for point in profile.decode} == {(1, 8), (2, 8)}
        await coordinator.tell("d1", opening(coordinator, agents, ()))
        assert (await coordinator.next(Failed)).request == "open-micro-batch"
        await coordinator.tell("d1", msgspec.structs.replace(request, rows=(99,)))
        refused = await coordinator.next(Failed)
        assert (refused.request, refused.code) == ("measure-device", "bad_config")
        assert refused.detail.startswith("d1: measure-device: rows")
        # An error that quotes what was wrong is cut to what a message may hold.
        quoted = config.replace('"LlamaForCausalLM"', '"' + "\x7f" * 50_000 + '"')
        await coordinator.tell("d1", msgspec.structs.replace(request, config=quoted))
        refused = await coordinator.next(Failed)
        assert (refused.request, refused.code) == ("measure-device", "unsupported_model")
        assert len(refused.detail) < 2000

    play(tmp_path, scenario)


@pytest.mark.parametrize("end", ["load", "worker", "agent"])
def test_a_measurement_that_is_given_up_leaves_nothing_behind(
    tmp_path: Path, digest: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Whoever asked is gone and another coordinator loads; the worker is killed; the service is stopped."""
    lines = [line for line in tegrastats.recorded_lines() if "VDD_GPU_SOC" in line]
    programs = tegrastats.install(tmp_path / "programs", lines).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    config = (MODELS / MODEL / "config.json").read_text(encoding="utf-8")
    # Far longer than this test may take.
    request = MeasureDevice(9, MODEL, config, "fp32", 32, "fp16", (1, 2), (8,), (16,), 600.0)

    async def scenario(coordinator: Coordinator, agents: list[AgentProcess]) -> None:
        worker = psutil.Process(agents[0].worker())
        await coordinator.tell("d1", request)
        while "loading" not in (await coordinator.next(MeasureProgress)).what:
            pass
        (sensor,) = worker.children()
        assert programs.name in " ".join(sensor.cmdline())
        if end == "load":
            await coordinator.tell("d1", load(digest))
            assert (await coordinator.next(Loaded)).model == MODEL
            assert agents[0].worker() == worker.pid
        elif end == "worker":
            worker.kill()
            await coordinator.next(WorkerRestarted)
        else:
            status, took_s = agents[0].stop()
            assert status == 0
            assert took_s < STOP_S, "the worker ended by itself"
        wait_until(lambda: not is_alive(sensor.pid), "tegrastats has ended")

    play(tmp_path, scenario, board="agx-orin")
