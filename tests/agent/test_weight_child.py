"""An agent that gives its layers away: a third process, announced, guarded, and no condition for serving."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from agent.config import AgentConfig
from agent.weight_child import RESTART_S, WeightChild
from agent.wire.addresses import BulkSource, PeerKey
from agent.wire.bulk import Fetch, ReplyKind, decode_reply
from agent.wire.bulk_plane import BulkClient
from agent.wire.control_plane import ControlClient
from agent.wire.events import Connected, Readable, Refused, Replied
from agent.wire.messages import PROTOCOL_VERSION, Hello, Load, Loaded, LoadProgress, Unload, Welcome
from agent.wire.security import KeyPair, create_key_file, generate_keys
from tests.fakes.agent_process import AgentProcess, Coordinator, agent, is_alive, wait_until
from tests.fakes.sockets import free_port
from tests.fakes.weight_sources import KEY, filled_store

PEER = generate_keys()


def weights_process(one: AgentProcess) -> int:
    """Process id of the child that serves weights."""
    for child in psutil.Process(one.process.pid).children():
        if "agent.weight_server" in child.cmdline():
            return child.pid
    raise AssertionError("no process serves weights")


def first_event(client: BulkClient, kind: type) -> object:
    """pytest's timeout bounds the wait."""
    while True:
        for event in client.poll(1000):
            if isinstance(event, kind):
                return event


def fetch(endpoint: str, key: str, keys: KeyPair, part: str, item: str) -> ReplyKind:
    with closing(BulkClient(keys)) as client:
        client.connect("d1", endpoint, key)
        first_event(client, Connected)
        request = Fetch(1, KEY.digest, KEY.quantization, KEY.block_size, KEY.compute, part, item, 0, 1 << 20)
        assert client.ask("d1", request)
        replied = first_event(client, Replied)
        assert isinstance(replied, Replied)
        return decode_reply(replied.parts).kind


def test_a_device_gives_what_its_cache_has_to_the_devices_of_its_cluster(tmp_path: Path) -> None:
    filled_store(tmp_path / "cache" / "layers", ("embedding",))

    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public, bulk_bind="tcp://127.0.0.1:0") as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            hello = await coordinator.next(Hello)
            assert hello.bulk_endpoint.startswith("tcp://127.0.0.1:")
            with closing(BulkClient(PEER)) as client:
                client.connect("d1", hello.bulk_endpoint, one.public_key)
                assert await asyncio.to_thread(first_event, client, Refused)
            await coordinator.tell("d1", Welcome(PROTOCOL_VERSION, "0.0.0", (PeerKey("peer", PEER.public),)))
            for part, item, kind in (
                ("embedding", "model.embed_tokens.weight", ReplyKind.CHUNK),
                ("embedding", "", ReplyKind.MISSING),
                ("embedding", "other", ReplyKind.MISSING),
                ("head", "x", ReplyKind.MISSING),
            ):
                asked = asyncio.to_thread(fetch, hello.bulk_endpoint, one.public_key, PEER, part, item)
                assert await asyncio.wait_for(asked, 20) is kind
            child = weights_process(one)
            status, seconds = one.stop()
            assert (status, seconds < 3) == (0, True)
            wait_until(lambda: not psutil.pid_exists(child), "the child ends")

    asyncio.run(scenario())


def test_a_child_that_dies_costs_its_endpoint_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public, bulk_bind="tcp://127.0.0.1:0") as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            first = await coordinator.next(Hello)
            os.kill(weights_process(one), signal.SIGKILL)
            second = await coordinator.next(Hello)
            assert (first.bulk_endpoint != "", second.bulk_endpoint) == (True, "")
            assert first.worker == second.worker

    asyncio.run(scenario())


def test_it_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public, bulk_bind="tcp://127.0.0.1:0") as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            await coordinator.next(Hello)
            child = weights_process(one)
            one.process.kill()
            wait_until(lambda: not is_alive(child), "the child ends")

    asyncio.run(scenario())


def test_an_address_that_is_taken_does_not_keep_a_device_from_serving(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            closing(Coordinator()) as coordinator,
            agent(
                tmp_path,
                "d1",
                coordinator.endpoint,
                coordinator.keys.public,
                bulk_bind=f"tcp://127.0.0.1:{taken.getsockname()[1]}",
            ) as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            hello = await coordinator.next(Hello)
            assert hello.bulk_endpoint == ""
            assert "cannot bind" in one.log()

    asyncio.run(scenario())


def load(model: str, *sources: BulkSource) -> Load:
    return Load(
        model=model,
        digest=KEY.digest,
        resident=((0, 2),),
        quantization="int4",
        block_size=32,
        boundary="fp16",
        slots=1,
        context=64,
        sources=sources,
    )


def test_a_load_that_waits_for_weights_reports_and_gives_way_to_the_next(tmp_path: Path) -> None:
    """Nobody answers at its source: the worker says that it is busy, and takes the next request all the same."""

    async def scenario() -> None:
        with (
            closing(Coordinator()) as coordinator,
            agent(tmp_path, "d1", coordinator.endpoint, coordinator.keys.public) as one,
        ):
            coordinator.allowed.allow(one.public_key, "d1")
            await coordinator.welcome(one)
            worker = one.worker()
            nobody = BulkSource("", f"tcp://*:{free_port()}", "ignored")
            for following in (Unload(), load("wiki-32l")):
                await coordinator.tell("d1", load("absent", nobody))
                for _ in range(3):
                    assert (await coordinator.next(LoadProgress)).model == "absent"
                await coordinator.tell("d1", following)
            assert (await coordinator.next(Loaded)).model == "wiki-32l"
            assert one.worker() == worker
            assert one.log().count("load_superseded") == 2
            assert one.stop()[0] == 0

    asyncio.run(scenario())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[WeightChild]:
    """A child whose supervisor is the test."""
    create_key_file(tmp_path / "agent.key")
    config = AgentConfig(
        name="d1",
        coordinator="tcp://127.0.0.1:1",
        coordinator_key=PEER.public,
        key_file=tmp_path / "agent.key",
        cache_dir=tmp_path / "cache",
        bulk_bind="tcp://127.0.0.1:0",
    )
    with closing(ControlClient(generate_keys(), config.coordinator, PEER.public, "d1")) as client:
        child = WeightChild(config, client)
        yield child
        child.stop()


def wait_until_it_serves(alone: WeightChild) -> None:
    while not alone.endpoint:
        for event in alone._client.poll(1000):
            if isinstance(event, Readable) and alone.owns(event.fd):
                alone.on_readable()


def test_a_child_that_cannot_be_started_keeps_nobody_waiting(
    alone: WeightChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object, **__: object) -> object:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    open_before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", scarce)
        assert alone.tend(0.0), "settled: there is none"
        assert not alone.tend(1.0)
    assert len(os.listdir("/proc/self/fd")) == open_before
    alone.tend(RESTART_S)
    wait_until_it_serves(alone)


@pytest.mark.timeout(30)
def test_a_child_that_reads_nothing_does_not_hold_up_its_supervisor(alone: WeightChild) -> None:
    alone.tend(0.0)
    wait_until_it_serves(alone)
    [process] = [each for each in psutil.Process().children() if "agent.weight_server" in each.cmdline()]
    process.suspend()
    peers = tuple(PeerKey(f"d{number}", PEER.public) for number in range(500))
    while alone.endpoint:
        alone.welcome(Welcome(PROTOCOL_VERSION, "0.0.0", peers))
    assert not process.is_running()
