"""One wait for everything: sockets, file descriptors and alarms, as a list of events. Knows no socket library.

The poller is zmq.Poller, handed in by `transport`; the clock is CLOCK_MONOTONIC.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from agent.wire.events import Event

Handler = Callable[[list[Event]], None]


class Poller(Protocol):
    """What is used of zmq.Poller."""

    def register(self, socket: Any, flags: int) -> object: ...

    def unregister(self, socket: Any) -> object: ...

    def poll(self, timeout: int | None) -> list[tuple[Any, int]]:
        """Sources that are ready, after at most `timeout` milliseconds."""


class EventPoll:
    """A poller whose sources turn readiness into events, with alarms. One thread uses it."""

    def __init__(self, poller: Poller, readable: int) -> None:
        self.pending: list[Event] = []
        """Changes of connections: handed out before messages, so that kept frames are sent before answers to these."""
        self._poller = poller
        self._readable = readable
        self._handlers: dict[Any, Handler] = {}
        self._alarms: dict[object, tuple[float, Callable[[], None]]] = {}

    def watch(self, source: object, handler: Handler) -> None:
        """Call the handler once for every poll that finds the source readable."""
        self._poller.register(source, self._readable)
        self._handlers[source] = handler

    def forget(self, source: object) -> None:
        """No longer watch a source; unknown ones are ignored."""
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def alarm(self, owner: object, delay_ms: int, ring: Callable[[], None]) -> None:
        """Call `ring` from a later poll; one alarm per owner."""
        self._alarms[owner] = (time.monotonic() + delay_ms / 1e3, ring)

    def silence(self, owner: object) -> None:
        """Take an owner's alarm back."""
        self._alarms.pop(owner, None)

    def poll(self, timeout_ms: int | None) -> list[Event]:
        """Wait for events, for ever when None; at most one message per source, so that none starves another."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1e3
        while True:
            if self._alarms:
                self._ring()
            events: list[Event] = []
            for source, _ in self._poller.poll(0 if self.pending else self._wait_ms(deadline)):
                self._handlers[source](events)
            if self.pending:
                events, self.pending = self.pending + events, []
            # A wake-up without an event (an alarm, a dropped message) is not the caller's.
            if events or (deadline is not None and time.monotonic() >= deadline):
                return events

    def _wait_ms(self, deadline: float | None) -> int | None:
        """Milliseconds until the deadline or the first alarm, rounded up."""
        if self._alarms:
            first = min(at for at, _ in self._alarms.values())
            deadline = first if deadline is None else min(first, deadline)
        return None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1e3))

    def _ring(self) -> None:
        now = time.monotonic()
        for owner, (at, ring) in list(self._alarms.items()):
            if at <= now:
                del self._alarms[owner]
                ring()
