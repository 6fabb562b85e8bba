"""The bulk sockets on loopback: who may ask, large chunks, clients that leave or read nothing."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from agent.errors import ConfigError
from agent.wire.bulk import MAX_CHUNK_BYTES, Fetch, Reply, ReplyKind, decode_fetch, decode_reply
from agent.wire.bulk_plane import BULK_LIMITS, BulkClient, BulkServerPlane
from agent.wire.events import Connected, Event, Received, Refused, Replied
from agent.wire.security import AllowList, generate_keys

SERVER, DEVICE, STRANGER = generate_keys(), generate_keys(), generate_keys()
FETCH = Fetch(1, "a" * 64, "int4", 128, "fp32", "head", "", 0, MAX_CHUNK_BYTES)


def server() -> BulkServerPlane:
    return BulkServerPlane(SERVER, AllowList({DEVICE.public: "jetson"}), "tcp://127.0.0.1:0")


def until(plane: BulkServerPlane | BulkClient, kind: type, count: int = 1) -> list[Event]:
    """Events of one kind; pytest's timeout bounds the wait."""
    found: list[Event] = []
    while len(found) < count:
        found += [event for event in plane.poll(1000) if isinstance(event, kind)]
    return found


def test_a_request_and_its_chunk() -> None:
    data = bytes(range(256)) * (MAX_CHUNK_BYTES // 256)
    with closing(server()) as plane, closing(BulkClient(DEVICE)) as client:
        assert not client.ask("peer", FETCH)
        client.connect("peer", plane.endpoint, SERVER.public)
        assert until(client, Connected) == [Connected("peer", again=False)]
        assert client.ask("peer", FETCH)
        [received] = until(plane, Received)
        assert isinstance(received, Received)
        assert received.device == "jetson"
        assert decode_fetch(received.parts) == FETCH
        assert plane.reply(received.origin, Reply(1, ReplyKind.CHUNK, len(data), data=data))
        [replied] = until(client, Replied)
        assert isinstance(replied, Replied)
        assert replied.peer == "peer"
        assert decode_reply(replied.parts).data == data


def test_a_key_that_is_not_on_the_list_is_refused() -> None:
    with closing(server()) as plane, closing(BulkClient(STRANGER)) as client:
        client.connect("peer", plane.endpoint, SERVER.public)
        assert until(client, Refused) == [Refused("peer")]
        assert not client.ask("peer", FETCH)
        assert plane.handshakes_refused >= 1


def test_an_endpoint_that_is_none_is_refused() -> None:
    with closing(BulkClient(DEVICE)) as client:
        for endpoint in ("ipc:///tmp/x", "inproc://x", "tcp://127.0.0.1:1;127.0.0.1:2"):
            with pytest.raises(ConfigError):
                client.connect("peer", endpoint, SERVER.public)
        with pytest.raises(ConfigError):
            client.connect("peer", "tcp://127.0.0.1:1", "no key")


def test_a_client_that_reads_nothing_holds_a_bounded_amount_and_one_that_left_nothing() -> None:
    data = bytes(MAX_CHUNK_BYTES)
    with closing(server()) as plane:
        with closing(BulkClient(DEVICE)) as client:
            client.connect("peer", plane.endpoint, SERVER.public)
            until(client, Connected)
            client.ask("peer", FETCH)
            [received] = until(plane, Received)
            assert isinstance(received, Received)
            sent = 0
            while plane.reply(received.origin, Reply(1, ReplyKind.CHUNK, len(data), data=data)):
                sent += 1
                # Both queues, and what the kernel's buffers hold.
                assert sent <= 2 * BULK_LIMITS.queue + 64
        deadline = time.monotonic() + 10
        while plane.reply(received.origin, Reply(1, ReplyKind.WAIT)):
            assert time.monotonic() < deadline
