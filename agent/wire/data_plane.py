"""The worker's sockets: one ROUTER for the stages before, one DEALER for each stage after. Knows no frame.

One thread uses a DataPlane; docs/protocol.md says what is sent over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from agent.wire.codec import Buffer
from agent.wire.control_plane import ControlClient
from agent.wire.events import Connected, Disconnected, Event, Readable, Received, Refused, Replied
from agent.wire.security import AllowList, KeyPair
from agent.wire.transport import Dealer, DealerEvents, Limits, Router, new_poll

DATA_LIMITS = Limits(queue=256, part_bytes=64 << 20, linger_ms=0, full_is_lost=True)
"""256 waiting frames are the 4 kept ones of 64 micro-batches: more means that the peer reads nothing. A prefill chunk
of 128 tokens at hidden size 65,536 in fp32 is 32 MiB. No linger: what is not answered is kept and sent again anyway."""


class DataPlane:
    """Bytes to and from the neighbours of this device, in one poll with everything else the worker waits for."""

    def __init__(self, keys: KeyPair, allow: AllowList, bind: str) -> None:
        self._keys = keys
        self._router = Router(keys, allow, bind, DATA_LIMITS)
        self._poll = new_poll()
        self._poll.watch(self._router.socket, self._receive)
        self._dealers: dict[str, Dealer] = {}

    @property
    def endpoint(self) -> str:
        """Where neighbours connect to, with the port that was chosen."""
        return self._router.endpoint

    @property
    def handshakes_refused(self) -> int:
        """Connections that did not prove to be a device of the list."""
        return self._router.handshakes_refused

    @property
    def messages_dropped(self) -> int:
        """Messages of too many parts, or from a device that was revoked meanwhile."""
        return self._router.messages_dropped

    def connect(self, peer: str, endpoint: str, key: str) -> None:
        """Connect to a device, or keep the connection there is to this endpoint and key. Raises ConfigError."""
        present = self._dealers.get(peer)
        if present is not None and (present.endpoint, present.server_key) == (endpoint, key):
            return
        events = DealerEvents(
            received=partial(Replied, peer),
            connected=partial(Connected, peer),
            disconnected=partial(Disconnected, peer),
            refused=partial(Refused, peer),
        )
        self.disconnect(peer)
        self._dealers[peer] = Dealer(
            self._router.context,
            self._poll,
            endpoint,
            keys=self._keys,
            server_key=key,
            limits=DATA_LIMITS,
            events=events,
        )

    def disconnect(self, peer: str) -> None:
        """Close the connection to a device; unknown ones are ignored."""
        dealer = self._dealers.pop(peer, None)
        if dealer is not None:
            dealer.close()

    def is_connected(self, peer: str) -> bool:
        """True from the device's Connected event on."""
        dealer = self._dealers.get(peer)
        return dealer is not None and dealer.is_connected

    def send(self, peer: str, parts: Sequence[Buffer]) -> bool:
        """False when the message did not leave now: keep it for the Connected event. Raises ValueError when a part is
        longer than DATA_LIMITS allow."""
        dealer = self._dealers.get(peer)
        return dealer is not None and dealer.send(parts)

    def reply(self, origin: bytes, parts: Sequence[Buffer]) -> bool:
        """Answer on the connection a message came from; False when it is gone."""
        return self._router.send(origin, parts)

    def register(self, descriptor: int) -> None:
        """Report Readable for a file descriptor too."""
        self._poll.watch(descriptor, lambda events: events.append(Readable(descriptor)))

    def unregister(self, descriptor: int) -> None:
        """No longer report a file descriptor."""
        self._poll.forget(descriptor)

    def attach(self, control: ControlClient) -> None:
        """Report a control client's events in this poll; its own poll is not used any more."""
        control.join(self._poll)

    def poll(self, timeout_ms: int | None) -> list[Event]:
        """Wait for events, at most `timeout_ms`; changes of connections come first. Parts are views of libzmq's memory
        that live as long as they are referred to."""
        return self._poll.poll(timeout_ms)

    def close(self) -> None:
        """Close all connections at once; an attached control client is closed by its owner, before this."""
        for peer in list(self._dealers):
            self.disconnect(peer)
        self._router.close()

    def _receive(self, events: list[Event]) -> None:
        message = self._router.receive()
        if message is not None:
            events.append(Received(*message))
