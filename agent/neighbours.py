"""Devices that this one's frames go to: connections, and their round trips while nothing else is under way. Pure."""

from __future__ import annotations

from collections.abc import Set

from agent.device.telemetry import TelemetryRecorder
from agent.effects import Connect, Disconnect, Effect, Send
from agent.wire.codec import Frame, FrameKind
from agent.wire.round_trip import PING_INTERVAL_S, RoundTrip


class Neighbours:
    """One connection per device, however many micro-batches use it."""

    def __init__(self, telemetry: TelemetryRecorder, now: float) -> None:
        self._telemetry = telemetry
        self._connections: dict[str, Connect] = {}
        self._round_trips: dict[str, RoundTrip] = {}
        self._pinged_s = now

    def connect(self, peer: str, endpoint: str, key: str) -> list[Effect]:
        """Connect, unless that is so already; anew where the device has moved."""
        connection = Connect(peer, endpoint, key)
        if self._connections.get(peer) == connection:
            return []
        effects: list[Effect] = [Disconnect(peer)] if peer in self._connections else []
        self._connections[peer] = connection
        self._round_trips[peer] = RoundTrip()
        return [*effects, connection]

    def leave(self, peer: str) -> list[Effect]:
        """Nobody needs it any more."""
        if self._connections.pop(peer, None) is None:
            return []
        del self._round_trips[peer]
        return [Disconnect(peer)]

    def on_pong(self, peer: str, sent_ns: int, now: float) -> None:
        """A ping is back, if it was one of ours."""
        now_ns = round(now * 1e9)
        if peer in self._round_trips and self._round_trips[peer].received(sent_ns, now_ns):
            self._telemetry.round_trip(peer, self._round_trips[peer])

    def ping(self, busy: Set[str], now: float) -> list[Effect]:
        """Once per PING_INTERVAL_S, each that is not busy."""
        if now - self._pinged_s < PING_INTERVAL_S:
            return []
        self._pinged_s = now
        effects: list[Effect] = []
        for peer in sorted(self._connections.keys() - busy):
            self._round_trips[peer].sent(round(now * 1e9))
            effects.append(Send(peer, Frame(FrameKind.PING, 0, 0, 0, sent_ns=round(now * 1e9))))
        return effects
