"""Connections are shared, renewed and left; pings go to whoever is not busy."""

from __future__ import annotations

from agent.device.telemetry import TelemetryRecorder
from agent.effects import Connect, Disconnect, Send
from agent.neighbours import Neighbours
from agent.wire.codec import FrameKind
from agent.wire.round_trip import PING_INTERVAL_S


def test_a_device_is_connected_once_anew_when_it_moves_and_left_once() -> None:
    neighbours = Neighbours(TelemetryRecorder(), 0.0)
    assert neighbours.connect("b", "tcp://b:1", "k") == [Connect("b", "tcp://b:1", "k")]
    assert neighbours.connect("b", "tcp://b:1", "k") == []
    assert neighbours.connect("b", "tcp://b:2", "k") == [Disconnect("b"), Connect("b", "tcp://b:2", "k")]
    assert neighbours.leave("b") == [Disconnect("b")]
    assert neighbours.leave("b") == []


def test_pings_go_once_per_interval_to_those_who_are_idle() -> None:
    neighbours = Neighbours(TelemetryRecorder(), 0.0)
    for name in "cb":
        neighbours.connect(name, f"tcp://{name}:1", "k")
    assert neighbours.ping(set(), PING_INTERVAL_S / 2) == []
    sent = neighbours.ping({"c"}, PING_INTERVAL_S)
    assert [(effect.peer, effect.frame.kind) for effect in sent if isinstance(effect, Send)] == [("b", FrameKind.PING)]
    assert neighbours.ping(set(), 1.5 * PING_INTERVAL_S) == []
    assert len(neighbours.ping(set(), 2 * PING_INTERVAL_S)) == 2


def test_a_pong_of_nobody_is_nothing() -> None:
    telemetry = TelemetryRecorder()
    neighbours = Neighbours(telemetry, 0.0)
    neighbours.connect("b", "tcp://b:1", "k")
    neighbours.ping(set(), 2.0)
    before = telemetry.snapshot()
    neighbours.on_pong("c", 2_000_000_000, 2.1)
    neighbours.on_pong("b", 1_999_999_999, 2.1)
    assert telemetry.snapshot() == before
    neighbours.on_pong("b", 2_000_000_000, 2.1)
    assert telemetry.snapshot() != before
