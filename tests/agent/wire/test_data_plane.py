"""Two and three data planes on loopback with CURVE: frames, replies, restarts, and what else a worker waits for."""

from __future__ import annotations

import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec.structs import replace

from agent.wire import codec
from agent.wire.addresses import LinkShape
from agent.wire.codec import Buffer, Frame, FrameKind
from agent.wire.control_plane import ControlClient
from agent.wire.data_plane import DATA_LIMITS, DataPlane
from agent.wire.events import (
    Connected,
    ControlConnected,
    ControlEvent,
    Controlled,
    Disconnected,
    Event,
    Readable,
    Received,
    Replied,
)
from agent.wire.kept_frames import Outgoing
from agent.wire.security import AllowList, generate_keys
from agent.wire.transport import Limits, Router

LOOPBACK = "tcp://127.0.0.1:0"
FIRST, SECOND = generate_keys(), generate_keys()
ALLOW = AllowList({FIRST.public: "first", SECOND.public: "second"})


@pytest.fixture
def first() -> Iterator[DataPlane]:
    with closing(DataPlane(FIRST, ALLOW, LOOPBACK)) as plane:
        yield plane


@pytest.fixture
def second() -> Iterator[DataPlane]:
    with closing(DataPlane(SECOND, ALLOW, LOOPBACK)) as plane:
        yield plane


def connect(plane: DataPlane, other: DataPlane) -> None:
    plane.connect("second", other.endpoint, SECOND.public)
    assert plane.poll(5000) == [Connected("second", again=False)]


def received(plane: DataPlane) -> Received:
    [event] = plane.poll(5000)
    assert isinstance(event, Received)
    return event


def frame(step: int) -> Frame:
    return Frame(FrameKind.ANSWER, 1, 1, step, payload=codec.encode_answers([codec.Answered(step)]))


def encoded(sent: Frame) -> list[Buffer]:
    return codec.encode(sent, zlib.crc32)


def decoded(parts: list[Buffer]) -> Frame:
    return codec.decode(parts, zlib.crc32)


def test_the_endpoint_has_the_port_that_was_chosen(first: DataPlane) -> None:
    host, _, port = first.endpoint.rpartition(":")
    assert host == "tcp://127.0.0.1"
    assert int(port) > 0


def test_a_frame_arrives_and_is_replied_to(first: DataPlane, second: DataPlane) -> None:
    assert not first.send("second", encoded(frame(0)))
    connect(first, second)
    assert first.is_connected("second")
    assert first.send("second", encoded(frame(0)))
    event = received(second)
    assert event.device == "first"
    assert replace(decoded(event.parts), payload=bytes(event.parts[1])) == frame(0)
    assert second.reply(event.origin, encoded(Frame(FrameKind.PONG, 0, 0, 0, sent_ns=5)))
    [reply] = first.poll(5000)
    assert isinstance(reply, Replied)
    assert (reply.peer, decoded(reply.parts).sent_ns) == ("second", 5)
    assert not second.is_connected("first")


def test_links_are_seen_as_the_kernel_measures_them(first: DataPlane, second: DataPlane) -> None:
    assert first.observed_links() == ()
    first.connect("second", second.endpoint, SECOND.public)
    (before,) = first.observed_links()
    assert (before.peer, before.rtt_ms, before.missing["rtt_ms"]) == ("second", None, "not connected")
    assert first.poll(5000) == [Connected("second", again=False)]
    (link,) = first.observed_links()
    assert link.rtt_ms is not None
    assert link.rtt_ms > 0.0
    assert link.resent is not None
    assert not link.emulated


def test_an_emulated_link_is_seen_as_it_is_emulated(first: DataPlane, second: DataPlane) -> None:
    first.emulate([LinkShape("second", bytes_per_s=5e5)])
    first.connect("second", second.endpoint, SECOND.public)
    (link,) = first.observed_links()
    assert (link.emulated, link.goodput_bytes_per_s, link.rtt_ms) == (True, 5e5, None)
    first.emulate([LinkShape("second", latency_ms=1.0)])
    (link,) = first.observed_links()
    assert (link.emulated, link.goodput_bytes_per_s) == (True, None)
    first.emulate([])
    (link,) = first.observed_links()
    assert not link.emulated


def test_what_was_kept_goes_again_after_the_peer_restarted(first: DataPlane) -> None:
    kept = Outgoing()
    second = DataPlane(SECOND, ALLOW, LOOPBACK)
    connect(first, second)
    kept.keep(frame(0), now=0.0)
    assert first.send("second", encoded(frame(0)))
    received(second)
    endpoint = second.endpoint
    second.close()
    assert first.poll(5000) == [Disconnected("second")]
    kept.keep(frame(1), now=0.0)
    assert not first.send("second", encoded(frame(1)))
    with closing(DataPlane(SECOND, ALLOW, endpoint)) as restarted:
        assert first.poll(5000) == [Connected("second", again=True)]
        for again in kept.unanswered():
            assert first.send("second", encoded(again))
        assert [decoded(received(restarted).parts).step for _ in range(2)] == [0, 1]


def test_a_reply_to_a_connection_that_is_gone(second: DataPlane) -> None:
    with closing(DataPlane(FIRST, ALLOW, LOOPBACK)) as first:
        connect(first, second)
        first.send("second", [b"a", b"b"])
        event = received(second)
        assert second.reply(event.origin, [b"x", b""])
    while second.reply(event.origin, [b"x", b""]):
        assert second.poll(1) == []


def test_connecting_twice_keeps_the_connection(first: DataPlane, second: DataPlane) -> None:
    connect(first, second)
    first.connect("second", second.endpoint, SECOND.public)
    assert first.poll(0) == []
    assert first.send("second", [b"a", b"b"])
    first.disconnect("second")
    first.disconnect("second")
    assert not first.send("second", [b"a", b"b"])
    assert not first.is_connected("second")


def test_a_moved_peer_is_connected_to_at_its_new_place(first: DataPlane) -> None:
    with closing(DataPlane(SECOND, ALLOW, LOOPBACK)) as here:
        connect(first, here)
        with closing(DataPlane(SECOND, ALLOW, LOOPBACK)) as there:
            connect(first, there)
            assert first.send("second", [b"a", b"b"])
            assert received(there).device == "first"
            assert here.poll(0) == []


def test_parts_outlive_the_next_poll(first: DataPlane, second: DataPlane) -> None:
    connect(first, second)
    payloads = [bytes([number]) * 100_000 for number in range(5)]
    for payload in payloads:
        assert first.send("second", [b"h", payload])
    events = [received(second) for _ in payloads]
    assert [bytes(event.parts[1]) for event in events] == payloads


def test_a_refused_message_is_counted(first: DataPlane, second: DataPlane) -> None:
    connect(first, second)
    assert first.send("second", [b""] * 5)
    assert first.send("second", [b"a", b"b"])
    received(second)
    assert (second.messages_dropped, second.handshakes_refused) == (1, 0)


def test_a_descriptor_is_reported_with_the_sockets(first: DataPlane) -> None:
    reading, writing = os.pipe()
    first.register(reading)
    os.write(writing, b"x")
    assert first.poll(5000) == [Readable(reading)]
    first.unregister(reading)
    assert first.poll(0) == []
    os.close(reading)
    os.close(writing)


def test_an_attached_control_client_reports_here(first: DataPlane) -> None:
    limits = Limits(queue=10, part_bytes=1000, linger_ms=0)
    with closing(Router(SECOND, ALLOW, LOOPBACK, limits)) as coordinator:
        control = ControlClient(FIRST, coordinator.endpoint, SECOND.public, "first")
        first.attach(control)
        assert first.poll(5000) == [ControlConnected(again=False)]
        assert control.send(b"hello")
        assert coordinator.socket.poll(5000)
        message = coordinator.receive()
        assert message is not None
        coordinator.send(message[0], [b"welcome"])
        [event] = first.poll(5000)
        assert event == Controlled(b"welcome")
        assert isinstance(event, ControlEvent.__args__)
        control.close()
        assert first.poll(0) == []


def test_closing_leaves_nothing_behind() -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with closing(DataPlane(FIRST, ALLOW, LOOPBACK)) as plane:
            plane.connect("second", "tcp://127.0.0.1:1", SECOND.public)
            plane.connect("third", plane.endpoint, FIRST.public)
            events: list[Event] = []
            while Connected("third", again=False) not in events:
                events += plane.poll(5000)
            plane.send("third", [b"x", bytes(1 << 20)])
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_the_longest_frame_of_the_design_fits() -> None:
    widest = codec.payload_bytes(codec.CodecId.FP32, (1, 128, codec.MAX_HIDDEN_SIZE))
    assert widest <= DATA_LIMITS.part_bytes


def test_no_event_loop_in_a_worker() -> None:
    script = "import sys, agent.wire.data_plane; sys.exit('asyncio' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", script]) == 0
