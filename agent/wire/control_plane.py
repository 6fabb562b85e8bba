"""The control plane's two ends: a client for supervisors and source workers, an asyncio server for the coordinator."""

from __future__ import annotations

import secrets

from agent.errors import ConfigError
from agent.wire.event_poll import EventPoll
from agent.wire.events import ControlConnected, ControlDisconnected, Controlled, ControlRefused, Event, Readable
from agent.wire.messages import MAX_CONTROL_BYTES
from agent.wire.security import AllowList, KeyPair
from agent.wire.transport import AsyncRouter, Dealer, DealerEvents, Limits, new_context, new_poll

CONTROL_LIMITS = Limits(queue=1000, part_bytes=MAX_CONTROL_BYTES, linger_ms=1000)
"""1000 waiting token events are seconds of the fastest model. The linger lets a last SessionEnded or Failed leave."""


class ControlClient:
    """A connection to the coordinator. One thread uses it, through its own `poll` or a DataPlane it is attached to."""

    def __init__(self, keys: KeyPair, endpoint: str, server_key: str, name: str) -> None:
        """`name` only helps to read the routing id; who this is, the key says. Raises ConfigError."""
        self._context = new_context()
        self._poll = new_poll()
        try:
            self._dealer = Dealer(
                self._context,
                self._poll,
                endpoint,
                keys=keys,
                server_key=server_key,
                limits=CONTROL_LIMITS,
                events=DealerEvents(
                    received=lambda parts: Controlled(bytes(parts[0])),
                    connected=ControlConnected,
                    disconnected=ControlDisconnected,
                    refused=ControlRefused,
                ),
                # Unique per process: a restarted one need not wait until the coordinator misses the old connection.
                routing_id=f"{name[:32]}-{secrets.token_hex(8)}".encode(),
            )
        except ConfigError:
            self._context.term()
            raise

    @property
    def is_connected(self) -> bool:
        """True from the ControlConnected event on."""
        return self._dealer.is_connected

    def send(self, data: bytes) -> bool:
        """False when the message did not leave: not connected, or CONTROL_LIMITS.queue wait already. Never blocks."""
        return self._dealer.send([data])

    def join(self, poll: EventPoll) -> None:
        """Report to another poll from now on; descriptors stay with the old one."""
        self._dealer.move(poll)
        self._poll = poll

    def register(self, descriptor: int) -> None:
        """Report Readable for a file descriptor too."""
        self._poll.watch(descriptor, lambda events: events.append(Readable(descriptor)))

    def unregister(self, descriptor: int) -> None:
        """No longer report a file descriptor."""
        self._poll.forget(descriptor)

    def poll(self, timeout_ms: int | None) -> list[Event]:
        """Wait for events, at most `timeout_ms`, for ever when None."""
        return self._poll.poll(timeout_ms)

    def close(self) -> None:
        """Returns within CONTROL_LIMITS.linger_ms."""
        self._dealer.close()
        self._context.term()


class AsyncControlServer(AsyncRouter):
    """The coordinator's end: `await receive()` gives (origin, device, data), `await send(origin, data)` answers.

    The device is named by its key. Raises ConfigError when the endpoint cannot be bound.
    """

    def __init__(self, keys: KeyPair, allow: AllowList, bind: str) -> None:
        super().__init__(keys, allow, bind, CONTROL_LIMITS)
