"""Whose request is answered next, and when: a token bucket over all clients and fair turns between them. Pure.

The bucket is kept as one number, the time at which it is paid for (the virtual scheduling form of the leaky bucket,
ITU-T I.371). Turns go by bytes: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), so that a device that
asks for small tensors gets as much of the rate as one that asks for large ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MAX_WAITING = 32
"""Requests of one device that wait; a client keeps fewer in flight. One more is dropped, and asked again by and by."""
BURST_S = 0.1
"""What a pause saves up: as little as keeps the link busy between two looks at the clock."""
WAIT_S = 2.0
"""A client that has waited this long is told that it still waits: several times before it takes this end for dead."""

RequestT = TypeVar("RequestT")


@dataclass(slots=True)
class _Client(Generic[RequestT]):
    waiting: deque[tuple[RequestT, int]] = field(default_factory=deque)
    start: float = 0.0
    """Virtual time, in bytes, at which its next request may begin."""
    heard_s: float = 0.0
    """When something was last sent to it, or when it began to wait."""


class Turns(Generic[RequestT]):
    """Requests that wait for their turn, by device; `now` is seconds of a monotonic clock."""

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        """`bytes_per_s` 0 is no limit."""
        self._bytes_per_s = bytes_per_s
        self._paid_s = float("-inf")
        self._virtual = 0.0
        self._clients: dict[str, _Client[RequestT]] = {}

    def __len__(self) -> int:
        return sum(len(client.waiting) for client in self._clients.values())

    def add(self, device: str, request: RequestT, size_bytes: int, now: float) -> bool:
        """Queue a request that will send at most `size_bytes`; False when MAX_WAITING of the device wait."""
        client = self._clients.setdefault(device, _Client())
        if len(client.waiting) >= MAX_WAITING:
            return False
        if not client.waiting:
            client.start = max(client.start, self._virtual)
            client.heard_s = now
        client.waiting.append((request, size_bytes))
        return True

    def due_s(self, now: float) -> float | None:
        """Seconds until a request may be answered, 0 for now; None when none waits."""
        if not len(self):
            return None
        return max(0.0, self._paid_s - now) if self._bytes_per_s else 0.0

    def next(self, now: float) -> RequestT | None:
        """The request whose turn it is, which counts as answered; None when none waits or the rate is used up."""
        if self.due_s(now) != 0.0:
            return None
        device = min((name for name, each in self._clients.items() if each.waiting), key=self._start)
        client = self._clients[device]
        request, size_bytes = client.waiting.popleft()
        self._virtual = client.start
        client.start += size_bytes
        client.heard_s = now
        if self._bytes_per_s:
            self._paid_s = max(self._paid_s, now - BURST_S) + size_bytes / self._bytes_per_s
        self._forget_idle()
        return request

    def refund(self, size_bytes: int) -> None:
        """What the last request was charged and did not send."""
        if self._bytes_per_s:
            self._paid_s -= size_bytes / self._bytes_per_s

    def overdue(self, now: float) -> list[RequestT]:
        """For every device that was told nothing for WAIT_S: the request it waits for longest. It goes on waiting."""
        found = []
        for client in self._clients.values():
            if client.waiting and now - client.heard_s >= WAIT_S:
                client.heard_s = now
                found.append(client.waiting[0][0])
        return found

    def drop(self, device: str) -> None:
        """Forget what a device waits for; unknown ones are ignored."""
        self._clients.pop(device, None)

    def _start(self, device: str) -> float:
        return self._clients[device].start

    def _forget_idle(self) -> None:
        """A device that asks for nothing is owed nothing, so that a long list of those that came and went is short."""
        if not len(self):
            self._clients.clear()
        for device in [name for name, each in self._clients.items() if not each.waiting]:
            if self._clients[device].start <= self._virtual:
                del self._clients[device]
