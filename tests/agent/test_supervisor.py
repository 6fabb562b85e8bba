"""The daemon's two processes, really started: how small and quick they are, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from agent.config import AgentConfig
from agent.device.sensors.radio import RadioSensor
from agent.supervisor import LOAD_DEADLINE_S, Supervisor
from agent.wire import messages
from agent.wire.events import Controlled, Readable
from agent.wire.measure_messages import MAX_MEASURE_S, MeasureDevice
from agent.wire.messages import Heartbeat, Hello, Rejected, Telemetry, Unload, WorkerHello, WorkerRestarted
from agent.wire.security import create_key_file, generate_keys
from agent.worker_channel import WorkerTick
from tests.fakes.agent_process import AgentProcess, Coordinator, agent, is_alive, wait_until

NOBODY = "tcp://127.0.0.1:9"
MIB = 1 << 20


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent whose coordinator does not answer."""
    with agent(tmp_path, "d1", NOBODY, generate_keys().public) as one:
        yield one


# --- without a coordinator ---


def test_it_is_ready_soon_small_and_loads_nothing_heavy(alone: AgentProcess, record_property: object) -> None:
    seconds = alone.wait_ready()
    processes = [psutil.Process(pid) for pid in (alone.process.pid, alone.worker())]
    resident = [process.memory_info().rss for process in processes]
    assert callable(record_property)
    record_property("ready_s", seconds)
    record_property("resident_mib", sum(resident) / MIB)
    print(f"ready after {seconds:.2f} s, resident {' + '.join(f'{part / MIB:.0f}' for part in resident)} MiB")
    assert seconds < 5
    assert sum(resident) <= 110 * MIB
    for process in processes:
        # An extension module in memory is a mapped file.
        mapped = " ".join(region.path for region in process.memory_maps())
        for heavy in ("/torch/", "/transformers/", "/onnxruntime/", "/tokenizers/", "/pydantic_core/"):
            assert heavy not in mapped


def test_sigterm_ends_both_at_once_and_well(alone: AgentProcess) -> None:
    alone.wait_ready()
    worker = alone.worker()
    status, seconds = alone.stop()
    assert status == 0
    assert seconds < 2
    assert not is_alive(worker)
    assert alone.has_notified("STOPPING=1")
    assert "Traceback" not in alone.log()


def test_sigterm_before_the_worker_is_ready_ends_both_too(alone: AgentProcess) -> None:
    worker = alone.worker()
    status, _ = alone.stop()
    assert status in (0, -signal.SIGTERM)
    wait_until(lambda: not is_alive(worker), "the worker ends")


def test_the_worker_ends_when_its_supervisor_is_killed(alone: AgentProcess) -> None:
    alone.wait_ready()
    worker = alone.worker()
    alone.process.kill()
    alone.process.wait()
    assert wait_until(lambda: not is_alive(worker), "the worker ends by itself") < 5
    assert "supervisor_gone" in alone.log()


def test_a_worker_that_cannot_start_is_tried_again_later_each_time(tmp_path: Path) -> None:
    with agent(tmp_path, "d1", NOBODY, generate_keys().public, provider="cuda") as one:
        wait_until(lambda: one.log().count("worker_died") >= 2, "a second attempt")
        assert one.process.poll() is None
        assert "exited with status 1" in one.log()
        assert "provider_unavailable" in one.log()
        assert one.stop()[0] == 0


# --- with one ---


def test_a_killed_worker_is_replaced_and_the_coordinator_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public) as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            await coordinator.welcome(one)
            before = coordinator.hellos["d1"]
            worker = one.worker()
            os.kill(worker, signal.SIGKILL)
            restarted = await coordinator.next(WorkerRestarted)
            coordinator.forget(Heartbeat)
            assert restarted.cause == "d1: worker was killed by SIGKILL"
            assert restarted.data_endpoint.startswith("tcp://127.0.0.1:")
            assert restarted.worker != before.worker
            assert one.worker() != worker
            await coordinator.next(WorkerHello)
            ticks = [(await coordinator.next(Heartbeat)).worker_tick for _ in range(3)]
            assert ticks == sorted(ticks)
            assert one.stop()[0] == 0

    asyncio.run(scenario())


def test_a_coordinator_that_comes_back_hears_of_the_same_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        with closing(Coordinator()) as first, agent(tmp_path, "d1", first.endpoint, first.keys.public) as one:
            first.allowed.allow(one.public_key, "d1")
            await first.welcome(one)
            first.close()
            with closing(Coordinator(first.keys, first.endpoint)) as second:
                second.allowed.allow(one.public_key, "d1")
                await second.welcome(one)
                assert second.hellos["d1"].worker == first.hellos["d1"].worker
                assert second.hellos["d1"].data_endpoint == first.hellos["d1"].data_endpoint

    asyncio.run(scenario())


def test_heartbeats_show_that_the_workers_own_loop_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public) as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            await coordinator.welcome(one)
            first = await coordinator.next(Heartbeat)
            while (beat := await coordinator.next(Heartbeat)).worker_tick <= first.worker_tick:
                pass
            os.kill(one.worker(), signal.SIGSTOP)
            last = -1
            while (beat := await coordinator.next(Heartbeat)).worker_tick != last:
                last = beat.worker_tick
            os.kill(one.worker(), signal.SIGCONT)
            while (await coordinator.next(Heartbeat)).worker_tick <= last:
                pass
            assert (beat.busy, beat.resident_bytes) == ("", 0)

    asyncio.run(scenario())


def test_a_key_that_is_not_on_the_list_is_told_so_and_may_be_listed_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public) as one,
        ):
            one.wait_ready()
            await asyncio.to_thread(wait_until, lambda: "coordinator_refused_key" in one.log(), "the key is refused")
            assert one.public_key in one.log()
            assert "cluster.toml" in one.log()
            coordinator.allowed.allow(one.public_key, "d1")
            assert (await coordinator.next(Hello)).device == "d1"

    asyncio.run(scenario())


def test_a_played_device_may_have_more_memory_than_this_machine(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(
                tmp_path,
                "d1",
                coordinator.endpoint,
                coordinator.keys.public,
                emulate="times.json",
                memory_limit="64 TiB",
            ) as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            assert (await coordinator.next(Hello)).memory_bytes == 64 << 40

    asyncio.run(scenario())


def test_what_it_does_not_understand_it_logs_and_serves_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public) as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            await coordinator.welcome(one)
            await coordinator.tell_bytes("d1", b"\xc1 nonsense")
            await coordinator.tell_bytes("d1", messages.encode(Hello(1, "x", "x", "x", "x", 1, "cpu")))
            await coordinator.tell("d1", Rejected("version_mismatch", "agent 1, coordinator 2"))
            await coordinator.tell("d1", Unload())
            await asyncio.to_thread(
                wait_until, lambda: "agent 1, coordinator 2" in one.log(), "the rejection is in the log"
            )
            assert one.log().count("bad_control_message") == 2
            await coordinator.next(Heartbeat)
            assert one.stop()[0] == 0

    asyncio.run(scenario())


def supervisor_alone(directory: Path) -> Supervisor:
    """Not running; what it does is called by the test."""
    create_key_file(directory / "agent.key")
    return Supervisor(
        AgentConfig(
            name="d1", coordinator=NOBODY, coordinator_key=generate_keys().public, key_file=directory / "agent.key"
        )
    )


@pytest.mark.parametrize("seconds", [60.0, float("nan"), float("inf"), -1e9])
def test_a_measurement_has_time_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    supervisor = supervisor_alone(tmp_path)
    supervisor._start_worker(0.0)
    watchdog, process = supervisor._watchdog, supervisor._process
    assert watchdog is not None
    assert process is not None
    now_s = time.monotonic()
    request = MeasureDevice(1, "m", "{}", "int8", 32, "fp16", (1,), (8,), (8,), seconds)
    supervisor._on_event(Controlled(messages.encode(request)))
    # This one was under way when the request came.
    supervisor._on_worker_message(WorkerTick(1, "", 0, Telemetry()))
    supervisor._on_worker_message(WorkerTick(2, "measuring", 0, Telemetry()))
    watchdog.tick("supervisor")
    assert watchdog.feed(now_s)
    assert watchdog.silent(now_s + LOAD_DEADLINE_S - 1) == ("supervisor",)
    assert watchdog.silent(now_s + LOAD_DEADLINE_S + MAX_MEASURE_S + 60) == ("supervisor", "worker")
    process.kill()
    supervisor._stop_worker()
    supervisor._client.close()


def test_a_request_and_the_workers_end_in_one_poll(tmp_path: Path) -> None:
    """The pipe is found closed when the request is passed on; its own event comes after and finds nobody."""
    supervisor = supervisor_alone(tmp_path)
    supervisor._start_worker(0.0)
    process, channel = supervisor._process, supervisor._channel
    assert isinstance(process, subprocess.Popen)
    assert channel is not None
    descriptor = channel.fileno()
    process.kill()
    process.wait()
    supervisor._on_event(Controlled(messages.encode(Unload())))
    supervisor._on_event(Readable(descriptor))
    assert supervisor._process is None
    supervisor._client.close()


@pytest.mark.timeout(20)
def test_news_of_a_process_that_is_gone_is_not_taken_for_the_workers(tmp_path: Path) -> None:
    """Reading the worker's pipe then would wait until the worker says something."""
    supervisor = supervisor_alone(tmp_path)
    supervisor._start_worker(0.0)
    process, channel = supervisor._process, supervisor._channel
    assert process is not None
    assert channel is not None
    process.send_signal(signal.SIGSTOP)
    supervisor._on_event(Readable(channel.fileno() + 100))
    assert supervisor._process is process
    process.kill()
    supervisor._stop_worker()
    supervisor._client.close()


def test_heartbeats_tell_of_the_radio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sys/class/net/wlan0/phy80211").mkdir(parents=True)
    supervisor = supervisor_alone(tmp_path)
    supervisor._radio = RadioSensor(tmp_path, str(tmp_path / "no-iw"))
    sent: list[bytes] = []
    monkeypatch.setattr(supervisor._client, "send", sent.append)
    supervisor._on_time(1e9)
    beat: messages.FromAgent = messages.decode(sent[0], messages.FromAgent)
    assert isinstance(beat, Heartbeat)
    assert [radio.interface for radio in beat.radios] == ["wlan0"]
    supervisor._client.close()
