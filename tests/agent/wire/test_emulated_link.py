"""Data planes on loopback whose links take their time: what arrives when, and what never stays behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from agent.wire.addresses import LinkShape
from agent.wire.data_plane import DataPlane
from agent.wire.events import Connected, Received, Replied
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
    assert arrived[-1][0] - sent_s < 0.3
    assert taken_s < 0.03, "the loop never sleeps for the link"
