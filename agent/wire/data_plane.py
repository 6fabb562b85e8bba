"""The worker's sockets: one ROUTER for the stages before, one DEALER for each stage after. Knows no frame.

One thread uses a DataPlane; docs/protocol.md says what is sent over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from agent.errors import ConfigError
from agent.wire.addresses import LinkShape
from agent.wire.codec import Buffer
from agent.wire.control_plane import ControlClient
from agent.wire.emulated_link import EmulatedDealer, EmulatedLink
from agent.wire.events import Connected, Disconnected, Event, Readable, Received, Refused, Replied
from agent.wire.link_clock import check_shape
from agent.wire.link_report import LinkObservation, emulated_observation, observation
from agent.wire.security import AllowList, KeyPair
from agent.wire.transport import Dealer, DealerEvents, Limits, Router, new_poll

DATA_LIMITS = Limits(queue=256, part_bytes=64 << 20, linger_ms=0, full_is_lost=True)
"""256 waiting frames are the 4 kept ones of 64 micro-batches: more means that the peer reads nothing. A prefill chunk
of 128 tokens at hidden size 65,536 in fp32 is 32 MiB. No linger: what is not answered is kept and sent again anyway."""

MAX_EMULATED_LINKS = 64
"""Of one device: each that is used has a thread."""
MAX_ORIGINS = 1024
"""Connections of other devices whose replies take an emulated link; of more, the longest known is forgotten."""


class DataPlane:
    """Bytes to and from the neighbours of this device, in one poll with everything else the worker waits for."""

    def __init__(self, keys: KeyPair, allow: AllowList, bind: str) -> None:
        self._keys = keys
        self._router = Router(keys, allow, bind, DATA_LIMITS)
        self._poll = new_poll()
        self._poll.watch(self._router.socket, self._receive)
        self._allow = allow
        self._dealers: dict[str, Dealer | EmulatedDealer] = {}
        self._shapes: dict[str, LinkShape] = {}
        self._links: dict[str, EmulatedLink] = {}
        """Emulated links in use, by the device at their other end."""
        self._origins: dict[bytes, str] = {}

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
        self.disconnect(peer)
        link = self._link_to(self._device_of(peer, key))
        if link is not None:
            self._dealers[peer] = link.connect(
                self._router.context, peer, endpoint, keys=self._keys, server_key=key, limits=DATA_LIMITS
            )
            return
        events = DealerEvents(
            received=partial(Replied, peer),
            connected=partial(Connected, peer),
            disconnected=partial(Disconnected, peer),
            refused=partial(Refused, peer),
        )
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

    def observed_links(self) -> tuple[LinkObservation, ...]:
        """The connections to neighbours as they are now, by name; a few system calls each."""
        return tuple(self._observed(peer, dealer) for peer, dealer in sorted(self._dealers.items()))

    def send(self, peer: str, parts: Sequence[Buffer]) -> bool:
        """False when the message did not leave now: keep it for the Connected event. Raises ValueError when a part is
        longer than DATA_LIMITS allow."""
        dealer = self._dealers.get(peer)
        return dealer is not None and dealer.send(parts)

    def reply(self, origin: bytes, parts: Sequence[Buffer]) -> bool:
        """Answer on the connection a message came from; False when it is gone."""
        link = self._link_to(self._origins[origin]) if origin in self._origins else None
        return self._router.send(origin, parts) if link is None else link.reply(origin, parts)

    def emulate(self, links: Sequence[LinkShape]) -> None:
        """Make what goes to these devices take as long as these links would; to all others it goes as fast as it can.

        A connection whose link comes or goes is renewed; a link whose shape changes keeps its connections. Raises
        ConfigError for a shape that is none, a device named twice or more than MAX_EMULATED_LINKS, changing nothing.
        """
        shapes = {link.peer: link for link in links}
        if len(shapes) < len(links) or len(shapes) > MAX_EMULATED_LINKS:
            raise ConfigError(
                f"{len(links)} emulated links to {len(shapes)} devices, at most {MAX_EMULATED_LINKS} to one each"
            )
        for link in links:
            check_shape(link)
        before, self._shapes = self._shapes, shapes
        for peer, open_link in self._links.items():
            if peer in shapes and shapes[peer] != before[peer]:
                open_link.reshape(shapes[peer])
        for peer in before.keys() ^ shapes.keys():
            self._renew(peer)
        if not shapes:
            self._origins.clear()

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
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._router.close()

    def _observed(self, peer: str, dealer: Dealer | EmulatedDealer) -> LinkObservation:
        if isinstance(dealer, EmulatedDealer):
            shape = self._shapes.get(self._device_of(peer, dealer.server_key))
            return emulated_observation(peer, shape.bytes_per_s if shape is not None else 0.0)
        return observation(peer, dealer.tcp_state())

    def _receive(self, events: list[Event]) -> None:
        message = self._router.receive()
        if message is None:
            return
        events.append(Received(*message))
        if self._shapes:
            self._remember(message[0], message[1])

    def _remember(self, origin: bytes, device: str) -> None:
        """Which device a reply will go to."""
        if device in self._shapes and origin not in self._origins:
            if len(self._origins) >= MAX_ORIGINS:
                del self._origins[next(iter(self._origins))]
            self._origins[origin] = device

    def _device_of(self, peer: str, key: str) -> str:
        """The device at the other end of a connection, which may go by another name."""
        return peer if peer in self._shapes else self._allow.device(key) or peer

    def _link_to(self, device: str) -> EmulatedLink | None:
        """The emulated link to a device, at work from now on; None when there is none."""
        if device in self._shapes and device not in self._links:
            self._links[device] = EmulatedLink(self._shapes[device], self._poll, self._router.send)
        return self._links.get(device)

    def _renew(self, device: str) -> None:
        """Connect anew to a device whose link came or went."""
        link = self._links.pop(device, None)
        for peer, dealer in list(self._dealers.items()):
            if device not in (peer, self._allow.device(dealer.server_key)):
                continue
            was_connected = dealer.is_connected
            self.disconnect(peer)
            if was_connected:
                self._poll.pending.append(Disconnected(peer))
            self.connect(peer, dealer.endpoint, dealer.server_key)
        if link is not None:
            link.close()
