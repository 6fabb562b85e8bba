"""A link between two stages as ZeroMQ over TCP offers it: connections that keep order, break, and come back.

Inside a connection nothing is lost, doubled or reordered. When it breaks, a prefix of what was under way may still be
delivered, at any later time, mixed with what a new connection brings: a ROUTER reads all of its connections in turn.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FakeLink(Generic[Item]):
    def __init__(self) -> None:
        self.is_connected = True
        self._connections: list[deque[Item]] = [deque()]

    def __len__(self) -> int:
        """Items that can be delivered."""
        return sum(map(len, self._connections))

    def send(self, item: Item) -> bool:
        """False when there is no connection, as DataPlane.send."""
        if self.is_connected:
            self._connections[-1].append(item)
        return self.is_connected

    def disconnect(self, survivors: int) -> None:
        """Break the connection; the first `survivors` items under way arrive all the same."""
        if self.is_connected:
            self.is_connected = False
            under_way = self._connections[-1]
            while len(under_way) > survivors:
                under_way.pop()

    def reconnect(self) -> bool:
        """True when there was no connection: the sender has to send again what it kept."""
        if self.is_connected:
            return False
        self.is_connected = True
        self._connections.append(deque())
        return True

    def deliver(self, choice: int) -> Item | None:
        """The oldest item of one of the connections, `choice` says of which; None when nothing is under way."""
        ready = [connection for connection in self._connections if connection]
        return ready[choice % len(ready)].popleft() if ready else None
