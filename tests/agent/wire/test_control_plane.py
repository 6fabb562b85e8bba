"""A control client and the coordinator's server on loopback: names from keys, restarts, limits, closing."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import closing

import pytest

from agent.errors import ConfigError
from agent.wire.control_plane import CONTROL_LIMITS, AsyncControlServer, ControlClient
from agent.wire.events import (
    ControlConnected,
    ControlDisconnected,
    Controlled,
    ControlRefused,
    Event,
    Readable,
)
from agent.wire.security import AllowList, KeyPair, generate_keys

LOOPBACK = "tcp://127.0.0.1:0"
COORDINATOR, JETSON, BOX = generate_keys(), generate_keys(), generate_keys()


def server(allow: AllowList | None = None, bind: str = LOOPBACK) -> AsyncControlServer:
    return AsyncControlServer(COORDINATOR, allow or AllowList({JETSON.public: "jetson", BOX.public: "box"}), bind)


def client(at: AsyncControlServer, keys: KeyPair = JETSON, name: str = "anything") -> ControlClient:
    return ControlClient(keys, at.endpoint, COORDINATOR.public, name)


async def poll(control: ControlClient, wait_ms: int = 5000) -> list[Event]:
    return await asyncio.to_thread(control.poll, wait_ms)


def test_messages_both_ways_and_names_from_keys() -> None:
    async def scenario() -> None:
        with (
            closing(server()) as coordinator,
            closing(client(coordinator, name="box")) as jetson,
            closing(client(coordinator, BOX)) as box,
        ):
            assert not jetson.send(b"early")
            for control in (jetson, box):
                assert await poll(control) == [ControlConnected(again=False)]
                assert control.send(b"hello")
            received = [await coordinator.receive() for _ in range(2)]
            assert {(device, data) for _, device, data in received} == {("jetson", b"hello"), ("box", b"hello")}
            for origin, device, _ in received:
                assert await coordinator.send(origin, device.encode())
            assert await poll(jetson) == [Controlled(b"jetson")]
            assert await poll(box) == [Controlled(b"box")]
            assert not await coordinator.send(b"nobody", b"x")

    asyncio.run(scenario())


def test_a_restarted_agent_is_heard_at_once() -> None:
    async def scenario() -> None:
        with closing(server()) as coordinator:
            origins = set()
            clients = [client(coordinator) for _ in range(3)]  # the old connections still stand
            for control in clients:
                assert await poll(control) == [ControlConnected(again=False)]
                control.send(b"hello")
                origin, device, _ = await coordinator.receive()
                assert device == "jetson"
                origins.add(origin)
            assert len(origins) == 3
            for control in clients:
                control.close()

    asyncio.run(scenario())


def test_a_restarted_coordinator_is_found_again() -> None:
    async def scenario() -> None:
        first = server()
        endpoint = first.endpoint
        with closing(client(first)) as control:
            assert await poll(control) == [ControlConnected(again=False)]
            first.close()
            assert await poll(control) == [ControlDisconnected()]
            assert not control.send(b"lost")
            assert not control.is_connected
            with closing(server(bind=endpoint)) as second:
                assert await poll(control) == [ControlConnected(again=True)]
                assert control.send(b"hello")
                assert (await second.receive())[1:] == ("jetson", b"hello")

    asyncio.run(scenario())


def test_a_stranger_learns_that_he_is_refused() -> None:
    async def scenario() -> None:
        with closing(server(AllowList({BOX.public: "box"}))) as coordinator, closing(client(coordinator)) as control:
            assert await poll(control) == [ControlRefused()]
            assert not control.send(b"x")
            assert coordinator.handshakes_refused == 1

    asyncio.run(scenario())


def test_a_revoked_device_is_not_heard() -> None:
    async def scenario() -> None:
        allow = AllowList({JETSON.public: "jetson", BOX.public: "box"})
        with (
            closing(server(allow)) as coordinator,
            closing(client(coordinator)) as jetson,
            closing(client(coordinator, BOX)) as box,
        ):
            await poll(jetson)
            await poll(box)
            allow.revoke(JETSON.public)
            waiting = asyncio.create_task(coordinator.receive())
            jetson.send(b"revoked")
            while coordinator.messages_dropped == 0:
                await asyncio.sleep(0)
            box.send(b"listed")
            assert (await waiting)[1:] == ("box", b"listed")

    asyncio.run(scenario())


def test_the_largest_message_arrives_and_a_larger_one_is_an_error() -> None:
    async def scenario() -> None:
        with closing(server()) as coordinator, closing(client(coordinator)) as control:
            await poll(control)
            largest = bytes(CONTROL_LIMITS.part_bytes)
            assert control.send(largest)
            assert (await coordinator.receive())[2] == largest
            with pytest.raises(ValueError, match="4194305 bytes"):
                control.send(largest + b"x")

    asyncio.run(scenario())


def test_what_was_sent_before_closing_arrives() -> None:
    async def scenario() -> None:
        with closing(server()) as coordinator:
            control = client(coordinator)
            await poll(control)
            for number in range(50):
                assert control.send(b"%d" % number)
            await asyncio.to_thread(control.close)
            assert [(await coordinator.receive())[2] for _ in range(50)] == [b"%d" % number for number in range(50)]

    asyncio.run(scenario())


def test_closing_does_not_wait_for_a_coordinator_that_is_gone() -> None:
    with closing(ControlClient(JETSON, "tcp://127.0.0.1:1", COORDINATOR.public, "jetson")) as control:
        assert control.poll(0) == []
        started = time.monotonic()
    assert time.monotonic() - started < 1.5


def test_closing_cancels_who_waits() -> None:
    async def scenario() -> None:
        coordinator = server()
        waiting = asyncio.create_task(coordinator.receive())
        await asyncio.sleep(0)
        coordinator.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())


def test_a_supervisor_watches_descriptors_too() -> None:
    async def scenario() -> None:
        reading, writing = os.pipe()
        with closing(server()) as coordinator, closing(client(coordinator)) as control:
            await poll(control)
            control.register(reading)
            os.write(writing, b"x")
            assert await poll(control) == [Readable(reading)]
            control.unregister(reading)
            assert await poll(control, 0) == []
        os.close(reading)
        os.close(writing)

    asyncio.run(scenario())


def test_bad_addresses_and_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="public key 'short'"):
        ControlClient(JETSON, "tcp://127.0.0.1:1", "short", "jetson")
    with pytest.raises(ConfigError, match="cannot connect to udp://nowhere"):
        ControlClient(JETSON, "udp://nowhere", COORDINATOR.public, "jetson")

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="cannot bind nowhere"):
            server(bind="nowhere")

    asyncio.run(scenario())
