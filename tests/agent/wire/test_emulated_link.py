"""Data planes on loopback whose links take their time: what arrives when, and what never stays behind."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from agent.errors import ConfigError
from agent.wire import data_plane, emulated_link, link_sender
from agent.wire.addresses import LinkShape
from agent.wire.data_plane import DATA_LIMITS, MAX_EMULATED_LINKS, DataPlane
from agent.wire.events import Connected, Disconnected, Event, Received, Replied
from agent.wire.link_sender import LinkSender
from agent.wire.security import AllowList, generate_keys

LOOPBACK = "tcp://127.0.0.1:0"
FIRST, SECOND = generate_keys(), generate_keys()
ALLOW = AllowList({FIRST.public: "first", SECOND.public: "second"})
CONNECTED = Connected("second", again=False)


@pytest.fixture
def first() -> Iterator[DataPlane]:
    with closing(DataPlane(FIRST, ALLOW, LOOPBACK)) as plane:
        yield plane


@pytest.fixture
def second() -> Iterator[DataPlane]:
    with closing(DataPlane(SECOND, ALLOW, LOOPBACK)) as plane:
        yield plane


def emulated(plane: DataPlane, other: DataPlane, shape: LinkShape) -> None:
    plane.emulate([shape])
    plane.connect("second", other.endpoint, SECOND.public)
    assert plane.poll(5000) == [CONNECTED]


def receive(plane: DataPlane, count: int) -> list[tuple[float, bytes]]:
    """(time, last part) of the next messages."""
    arrived: list[tuple[float, bytes]] = []
    while len(arrived) < count:
        for event in plane.poll(5000):
            assert isinstance(event, (Received, Replied))
            arrived.append((time.monotonic(), bytes(event.parts[-1])))
    return arrived


def until(plane: DataPlane, wanted: Event) -> list[Event]:
    """Everything up to an event, which has to come."""
    events: list[Event] = []
    deadline_s = time.monotonic() + 10
    while wanted not in events:
        assert time.monotonic() < deadline_s, events
        events += plane.poll(100)
    return events


def test_frames_arrive_at_rate_and_latency_in_order(first: DataPlane, second: DataPlane) -> None:
    emulated(first, second, LinkShape("second", bytes_per_s=1e6, latency_ms=50.0))
    sent_s = time.monotonic()
    for number in range(10):
        assert first.send("second", [b"h" * 10, bytes([number]) * 9990])
    taken_s = time.monotonic() - sent_s
    arrived = receive(second, 10)
    assert [part[0] for _, part in arrived] == list(range(10))
    for number, (at_s, _) in enumerate(arrived):
        assert at_s - sent_s >= 0.050 + 0.010 * (number + 1) - 1e-6, "none arrives early"
    assert arrived[-1][0] - sent_s < 0.4
    assert taken_s < 0.04, "the loop never sleeps for the link"


def test_a_burst_leaves_at_once(first: DataPlane, second: DataPlane) -> None:
    emulated(first, second, LinkShape("second", bytes_per_s=1000.0, burst_bytes=5000))
    sent_s = time.monotonic()
    for _ in range(5):
        first.send("second", [b"", bytes(1000)])
    assert receive(second, 5)[-1][0] - sent_s < 0.5, "5 s without the bucket"


def test_what_is_sent_may_be_written_over_at_once(first: DataPlane, second: DataPlane) -> None:
    emulated(first, second, LinkShape("second", latency_ms=20.0))
    payload = bytearray(b"before")
    assert first.send("second", [b"h", memoryview(payload)])
    payload[:] = b"after!"
    assert receive(second, 1)[0][1] == b"before"


def test_replies_take_the_same_link_as_frames(first: DataPlane, second: DataPlane) -> None:
    """Both directions are emulated at their senders: a pong of the second device waits behind its own frames."""
    first.connect("second", second.endpoint, SECOND.public)
    second.emulate([LinkShape("first", bytes_per_s=1e5, latency_ms=30.0)])
    second.connect("first", first.endpoint, FIRST.public)
    assert first.poll(5000) == [CONNECTED]
    assert second.poll(5000) == [Connected("first", again=False)]
    first.send("second", [b"ping", b""])
    [ping] = second.poll(5000)
    assert isinstance(ping, Received)
    sent_s = time.monotonic()
    assert second.send("first", [b"", bytes(5000)])
    assert second.reply(ping.origin, [b"", b"pong"])
    stop = threading.Event()
    looping = threading.Thread(target=lambda: [second.poll(5) for _ in iter(stop.is_set, True)])
    looping.start()
    (frame_s, frame), (pong_s, pong) = receive(first, 2)
    stop.set()
    looping.join()
    assert (frame, pong) == (bytes(5000), b"pong")
    assert frame_s - sent_s >= 0.08
    assert pong_s - sent_s >= 0.08


def test_no_more_replies_are_taken_than_the_limit(first: DataPlane, second: DataPlane) -> None:
    first.connect("second", second.endpoint, SECOND.public)
    second.emulate([LinkShape("first", latency_ms=60_000.0)])
    assert first.poll(5000) == [CONNECTED]
    first.send("second", [b"ping", b""])
    [ping] = second.poll(5000)
    assert isinstance(ping, Received)
    assert all(second.reply(ping.origin, [b"", b"pong"]) for _ in range(emulated_link.MAX_REPLIES))
    assert not second.reply(ping.origin, [b"", b"pong"])


def test_replies_that_left_make_room_for_others(first: DataPlane, second: DataPlane) -> None:
    first.connect("second", second.endpoint, SECOND.public)
    second.emulate([LinkShape("first")])
    assert first.poll(5000) == [CONNECTED]
    first.send("second", [b"ping", b""])
    [ping] = second.poll(5000)
    assert isinstance(ping, Received)
    for _ in range(3):
        assert all(second.reply(ping.origin, [b"", b"pong"]) for _ in range(emulated_link.MAX_REPLIES))
        came = 0
        while came < emulated_link.MAX_REPLIES:
            assert second.poll(1) == []
            came += len(first.poll(1))


def test_origins_are_remembered_up_to_a_limit(
    first: DataPlane, second: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_plane, "MAX_ORIGINS", 2)
    second.emulate([LinkShape("first", latency_ms=5.0)])
    for number in range(4):
        name = f"connection {number}"
        first.connect(name, second.endpoint, SECOND.public)
        until(first, Connected(name, again=False))
        first.send(name, [b"", b"ping"])
        [ping] = second.poll(5000)
        assert isinstance(ping, Received)
        assert second.reply(ping.origin, [b"", b"pong"])
        assert len(second._origins) <= 2
    looped: list[Event] = []
    while not looped:
        second.poll(1)
        looped = first.poll(1)


def test_a_connection_that_was_given_up_tells_nothing(first: DataPlane, second: DataPlane) -> None:
    first.emulate([LinkShape("second")])
    first.connect("second", second.endpoint, SECOND.public)
    assert select.select([first._links["second"]._outbox.descriptor], [], [], 5)[0], "it has connected, unheard"
    first.disconnect("second")
    assert first.poll(0) == []
    assert not first.is_connected("second")


def test_a_connection_by_another_name_takes_the_link_of_its_key(first: DataPlane, second: DataPlane) -> None:
    """As link probes connect: the link is the device's, not the connection's."""
    first.emulate([LinkShape("second", bytes_per_s=1e5)])
    first.connect("second", second.endpoint, SECOND.public)
    first.connect("probe of second", second.endpoint, SECOND.public)
    connected: list[Event] = []
    while len(connected) < 2:
        connected += first.poll(5000)
    sent_s = time.monotonic()
    first.send("second", [b"", bytes(5000)])
    first.send("probe of second", [b"", bytes(5000)])
    assert receive(second, 2)[-1][0] - sent_s >= 0.1


def test_what_was_under_way_is_lost_with_the_connection_and_costs_the_link_nothing(first: DataPlane) -> None:
    """Rule 3 of transport: nothing new before the loss and the new connection were handed out, nothing old after."""
    second = DataPlane(SECOND, ALLOW, LOOPBACK)
    emulated(first, second, LinkShape("second", bytes_per_s=1e5, latency_ms=20.0))
    for number in range(100):
        assert first.send("second", [b"", bytes([number]) * 10_000])
    endpoint = second.endpoint
    second.close()
    until(first, Disconnected("second"))
    assert not first.is_connected("second")
    assert not first.send("second", [b"", b"not now"])
    with closing(DataPlane(SECOND, ALLOW, endpoint)) as again:
        until(first, Connected("second", again=True))
        sent_s = time.monotonic()
        assert first.send("second", [b"", b"kept"])
        [(arrived_s, part)] = receive(again, 1)
        assert part == b"kept"
        assert arrived_s - sent_s < 2.0, "the link is free again: not the 10 s of what was dropped"


def test_a_full_link_is_a_lost_connection(first: DataPlane, second: DataPlane) -> None:
    emulated(first, second, LinkShape("second", latency_ms=60_000.0))
    for _ in range(DATA_LIMITS.queue):
        assert first.send("second", [b"", b"x"])
    assert not first.send("second", [b"", b"x"])
    assert not first.is_connected("second")
    events = until(first, Connected("second", again=True))
    assert events == [Disconnected("second"), Connected("second", again=True)]
    assert first.send("second", [b"", b"again"]), "what was under way no longer counts"


def test_links_come_change_and_go_under_a_connection(first: DataPlane, second: DataPlane) -> None:
    first.connect("second", second.endpoint, SECOND.public)
    assert first.poll(5000) == [CONNECTED]
    first.emulate([LinkShape("second", latency_ms=100.0)])
    assert until(first, CONNECTED) == [Disconnected("second"), CONNECTED]

    def takes_s() -> float:
        sent_s = time.monotonic()
        assert first.send("second", [b"", b"x"])
        return receive(second, 1)[0][0] - sent_s

    assert takes_s() >= 0.1
    first.emulate([LinkShape("second", latency_ms=30.0)])
    assert first.is_connected("second"), "another shape keeps the connection"
    assert 0.03 <= takes_s() < 0.1
    before = threading.active_count()
    first.emulate([])
    assert threading.active_count() == before - 1
    assert until(first, CONNECTED) == [Disconnected("second"), CONNECTED]
    assert takes_s() < 0.03


def test_a_link_that_comes_takes_every_connection_to_its_device(first: DataPlane, second: DataPlane) -> None:
    first.connect("probe of second", second.endpoint, SECOND.public)
    again = Connected("probe of second", again=False)
    assert first.poll(5000) == [again]
    first.emulate([LinkShape("second", latency_ms=40.0)])
    assert until(first, again) == [Disconnected("probe of second"), again]
    sent_s = time.monotonic()
    first.send("probe of second", [b"", b"x"])
    assert receive(second, 1)[0][0] - sent_s >= 0.04


def test_a_link_that_is_the_same_stays_as_it_is(first: DataPlane, second: DataPlane) -> None:
    shape = LinkShape("second", latency_ms=1.0)
    emulated(first, second, shape)
    first.emulate([LinkShape("second", latency_ms=1.0), LinkShape("third")])
    assert first.is_connected("second")
    assert first.poll(0) == []


def test_links_that_are_none_change_nothing(first: DataPlane, second: DataPlane) -> None:
    emulated(first, second, LinkShape("second", latency_ms=1.0))
    for wrong in (
        [LinkShape("second", latency_ms=-1.0)],
        [LinkShape("third"), LinkShape("third")],
        [LinkShape(f"device-{number}") for number in range(MAX_EMULATED_LINKS + 1)],
    ):
        with pytest.raises(ConfigError, match="emulated link"):
            first.emulate(wrong)
    assert first.is_connected("second")
    with pytest.raises(ConfigError, match="cannot connect to nowhere"):
        first.connect("second", "nowhere", SECOND.public)
    with pytest.raises(ConfigError, match="no key"):
        first.connect("second", second.endpoint, "no key")


def test_a_part_beyond_the_limit_is_the_senders_error(first: DataPlane, second: DataPlane) -> None:
    emulated(first, second, LinkShape("second"))
    with pytest.raises(ValueError, match="message part of"):
        first.send("second", [bytes(DATA_LIMITS.part_bytes + 1)])


def test_threads_are_those_of_links_in_use(first: DataPlane, second: DataPlane) -> None:
    before = threading.active_count()
    first.emulate([LinkShape(f"device-{number}") for number in range(MAX_EMULATED_LINKS)])
    assert threading.active_count() == before
    first.emulate([LinkShape("second")])
    for _ in range(3):
        first.connect("second", second.endpoint, SECOND.public)
        assert until(first, CONNECTED)
        assert threading.active_count() == before + 1
        first.disconnect("second")


def test_closing_leaves_nothing_behind() -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with closing(DataPlane(FIRST, ALLOW, LOOPBACK)) as plane:
            plane.emulate([LinkShape("second", bytes_per_s=1.0), LinkShape("first", latency_ms=5.0)])
            plane.connect("second", "tcp://127.0.0.1:1", SECOND.public)
            plane.connect("first", plane.endpoint, FIRST.public)
            until(plane, Connected("first", again=False))
            assert plane.send("first", [b"x", bytes(1 << 20)])
            assert not plane.send("second", [b"x", b"y"])
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_an_error_of_the_thread_is_the_loops(
    first: DataPlane, second: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated(first, second, LinkShape("second"))
    monkeypatch.setattr(LinkSender, "_carry", lambda *_: 1 / 0)
    first.send("second", [b"", b"x"])
    with pytest.raises(RuntimeError, match="the thread of an emulated link ended"):
        first.poll(5000)


@pytest.mark.timeout(30)
def test_a_link_whose_thread_has_ended_can_still_be_closed(second: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that came too late for the thread is closed by the loop: its context waits for every socket."""
    with closing(DataPlane(FIRST, ALLOW, LOOPBACK)) as plane:
        emulated(plane, second, LinkShape("second"))
        monkeypatch.setattr(LinkSender, "_carry", lambda *_: 1 / 0)
        plane.send("second", [b"", b"x"])
        with pytest.raises(RuntimeError, match="ended"):
            plane.poll(5000)
        plane.connect("2nd", second.endpoint, SECOND.public)


def test_what_the_loop_takes_makes_room(first: DataPlane, second: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_sender, "MAX_UNREAD_BYTES", 10_000)
    emulated(first, second, LinkShape("second"))
    for number in range(50):
        assert first.send("second", [b"", b"x"])
        [event] = second.poll(5000)
        assert isinstance(event, Received)
        second.reply(event.origin, [b"%d" % number, bytes(5000)])
        assert receive(first, 1)[0][1] == bytes(5000)
