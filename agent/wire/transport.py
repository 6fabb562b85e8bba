"""ZeroMQ sockets: a connecting DEALER, a bound ROUTER. Bytes in, events out; knows no frame and no message.

`data_plane` and `control_plane` are made of these; apart from `security` no other file sees zmq.

Rules
1. Nothing here blocks but `poll` and closing (the linger); a message that cannot leave now is not queued.
2. A device is who its CURVE key says (ZAP User-Id). Routing ids only say which connection a reply takes.
3. After a lost connection nothing is sent to a peer until its Connected event was handed out, so that the caller can
   send what it kept before anything new. A full queue counts as a lost connection for the same reason.
4. libzmq never dials again after a refused handshake; this file does, as the key may be listed a moment later.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import zmq

from agent.errors import ConfigError
from agent.wire.codec import Buffer
from agent.wire.event_poll import EventPoll
from agent.wire.events import Event
from agent.wire.security import AllowList, Gatekeeper, KeyPair, secure_client, secure_server
from agent.wire.tcp_state import TcpState, read_tcp_state

MAX_PARTS = 4
"""A data frame has two or three parts; one more is left for a later version, to be refused by name and not by count."""
CURVE_OVERHEAD_BYTES = 33
"""Command name 8, nonce 8, authenticator 16, flags 1 (ZeroMQ RFC 26): libzmq's limit counts them."""
RECONNECT_MS = 100
RECONNECT_MS_MAX = 200
CONNECT_MS = 600
"""An attempt to connect is given up after this, and the next one made after RECONNECT_MS_MAX at most: however long a
link was silent, less than a second passes from its return to the next SYN. The kernel's own attempts are as much as
32 s apart. A link whose round trip takes longer connects nobody."""
UNACKNOWLEDGED_MS = 1500
"""TCP's user timeout (RFC 5482): a connection whose bytes nobody has acknowledged for this long is given up. The kernel
sends again what was lost 0.2, 0.6, 1.4 and 3.0 s after: until 1.5 s it recovers by itself within a second of a link's
return, from then on a new connection does. A slow link is not a silent one: its acknowledgements keep coming."""
HEARTBEAT_MS = 500
HEARTBEAT_TIMEOUT_MS = 10_000
"""Heartbeats give both kernels something to acknowledge. They wait behind a frame that is being sent, so the timeout is
the longest that one may take: it finds what answers for a peer and is not it. A peer that hangs is found by its missing
ticks and answers."""
HANDSHAKE_MS = 5000
"""A connection that does not prove its key by then is closed."""

REDIAL_MS = 1000
"""After a refused handshake: time enough for a person or the coordinator to list the key."""

# Plain integers: pyzmq's enums cost a microsecond per operator, and these are used for every message.
_NOW = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_READABLE = int(zmq.POLLIN)
_WATCHED = int(
    zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
)

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the data plane and the control plane choose differently."""

    queue: int
    """Messages waiting for one peer, and read ahead from one peer."""
    part_bytes: int
    """Longest message part; libzmq closes the connection of a peer that sends a longer one."""
    linger_ms: int
    """How long closing waits for queued messages to leave."""
    full_is_lost: bool = False
    """Renew a connection whose queue is full: for those who send again what they keep when it is back."""


def _configure(socket: Socket, limits: Limits) -> None:
    """What all sockets have in common; reasons are at the constants."""
    socket.set_hwm(limits.queue)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.part_bytes + CURVE_OVERHEAD_BYTES)
    socket.linger = limits.linger_ms
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_MS)
    # Every device starts at its own interval, so that a restarted coordinator does not meet all of them at once.
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS + secrets.randbelow(RECONNECT_MS // 4))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.TOS, 0x10)


@dataclass(frozen=True, slots=True)
class DealerEvents:
    """The events a dealer's owner wants to see."""

    received: Callable[[list[Buffer]], Event]
    connected: Callable[[bool], Event]
    disconnected: Callable[[], Event]
    refused: Callable[[], Event]


class Dealer:
    """A CURVE client of one ROUTER that knows through its monitor whether it is connected.

    Raises ConfigError for a malformed key, and for an endpoint that is not `tcp://host:port`: it may come from another
    machine, and libzmq would open sockets of this one's file system or of the process itself.
    """

    def __init__(
        self,
        context: Context,
        poll: EventPoll,
        endpoint: str,
        *,
        keys: KeyPair,
        server_key: str,
        limits: Limits,
        events: DealerEvents,
        routing_id: bytes = b"",
    ) -> None:
        # With a semicolon libzmq takes what stands before it for the local address.
        if not endpoint.startswith("tcp://") or ";" in endpoint:
            raise ConfigError(f"cannot connect to {endpoint}: not of the form tcp://host:port")
        self.endpoint = endpoint
        self.server_key = server_key
        self.is_connected = False
        self._poll = poll
        self._events = events
        self._limits = limits
        self._handshakes = 0
        self._descriptor = -1
        self._socket = context.socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        self._monitor.linger = 0
        try:
            _configure(self._socket, limits)
            self._socket.setsockopt(zmq.IMMEDIATE, 1)
            self._socket.setsockopt(zmq.IPV6, 1)
            if routing_id:
                self._socket.setsockopt(zmq.ROUTING_ID, routing_id)
            secure_client(self._socket, keys, server_key)
            self._socket.connect(endpoint)
        except (zmq.ZMQError, ConfigError) as problem:
            self._close_sockets()
            raise ConfigError(f"cannot connect to {endpoint}: {problem}") from problem
        self._watch()

    def send(self, parts: Sequence[Buffer]) -> bool:
        """False when the message did not leave: not connected, or the queue is full.

        Raises ValueError for a part the peer's libzmq would close the connection over.
        """
        check_parts(parts, self._limits)
        # An unread event of the monitor may be a lost connection and a new one: the caller has to learn of it first.
        if not self.is_connected or _is_readable(self._monitor):
            return False
        try:
            _send_parts(self._socket, parts)
        except zmq.Again:
            if self._limits.full_is_lost:
                self.renew()
            return False
        return True

    def tcp_state(self) -> TcpState | None:
        """What the kernel has measured of the connection, None while there is none."""
        return read_tcp_state(self._descriptor) if self.is_connected else None

    def renew(self) -> None:
        """Give up the connection, if there is one, and connect anew."""
        self._lost()
        with contextlib.suppress(zmq.ZMQError):  # libzmq has forgotten an endpoint whose handshake was refused
            self._socket.disconnect(self.endpoint)
        self._socket.connect(self.endpoint)

    def move(self, poll: EventPoll) -> None:
        """Report to another poll from now on."""
        self._forget()
        self._poll = poll
        self._watch()

    def close(self) -> None:
        """Close the connection; what waits to be sent has the linger's time to leave."""
        self._forget()
        self._close_sockets()

    def _watch(self) -> None:
        self._poll.watch(self._socket, self._receive)
        self._poll.watch(self._monitor, self._observe)

    def _forget(self) -> None:
        self._poll.silence(self)
        self._poll.forget(self._socket)
        self._poll.forget(self._monitor)

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        # Still open here, and an open socket keeps its context from terminating.
        self._monitor.close()
        self._socket.close()

    def _receive(self, events: list[Event]) -> None:
        parts = _receive_parts(self._socket)
        if parts is not None:
            events.append(self._events.received(parts))

    def _observe(self, _: list[Event]) -> None:
        while _is_readable(self._monitor):
            kind, value = struct.unpack("=Hi", self._monitor.recv_multipart()[0])
            if kind == zmq.EVENT_CONNECTED:
                self._descriptor = value
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                # Reading EVENTS makes libzmq take over the new pipe now, not at some later call.
                self._socket.getsockopt(zmq.EVENTS)
                self.is_connected = True
                self._handshakes += 1
                self._poll.pending.append(self._events.connected(self._handshakes > 1))
            elif kind == zmq.EVENT_DISCONNECTED and value == self._descriptor:
                # With another descriptor it is the end of a connection that `renew` gave up.
                self._lost()
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._poll.pending.append(self._events.refused())
                self._poll.alarm(self, REDIAL_MS, self.renew)

    def _lost(self) -> None:
        if self.is_connected:
            self.is_connected = False
            self._poll.pending.append(self._events.disconnected())


class Router:
    """A CURVE server whose clients are the devices of an AllowList. Raises ConfigError when it cannot bind.

    It has a context of its own, because ZAP is answered per context.
    """

    def __init__(self, keys: KeyPair, allow: AllowList, endpoint: str, limits: Limits) -> None:
        self.context = new_context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.messages_dropped = 0
        """Messages with too many parts, or of a key that was revoked after its handshake."""
        self._allow = allow
        self._gatekeeper = Gatekeeper(self.context, self.socket, allow)
        _configure(self.socket, limits)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Bound with IPV6, an IPv4 address would come back as [::ffff:127.0.0.1], which is not what peers are told.
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint or "*" in endpoint))
        secure_server(self.socket, keys)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as problem:
            self.close()
            raise ConfigError(f"cannot bind {endpoint}: {problem.strerror}") from problem
        self.endpoint: str = bytes(self.socket.get(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
        """The address with the port that was chosen."""

    @property
    def handshakes_refused(self) -> int:
        """Connections whose key is not on the list, that took this device for another, or that spoke no CURVE."""
        return self._gatekeeper.refused

    def receive(self) -> tuple[bytes, str, list[Buffer]] | None:
        """(origin, device, parts) of a message that is there; None when it had to be dropped."""
        identity = self.socket.recv(copy=False)
        device = self.device_of(identity)
        parts = _receive_parts(self.socket)
        if parts is None or device is None:
            self.messages_dropped += 1
            return None
        return identity.bytes, device, parts

    def device_of(self, frame: zmq.Frame) -> str | None:
        """The device whose key sealed the connection of this frame, None when the key was revoked meanwhile."""
        return self._allow.device(str(frame.get("User-Id")))

    def send(self, origin: bytes, parts: Sequence[Buffer]) -> bool:
        """False when the connection is gone or its queue is full."""
        try:
            _send_parts(self.socket, [origin, *parts])
        except zmq.ZMQError as problem:
            return _unless_gone(problem)
        return True

    def close(self) -> None:
        """Close everything of this context; returns within the linger's time."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.socket.close()
        self._gatekeeper.close()
        self.context.term()


class AsyncRouter:
    """A Router whose messages are awaited. Made inside a running event loop."""

    def __init__(self, keys: KeyPair, allow: AllowList, endpoint: str, limits: Limits) -> None:
        import zmq.asyncio  # here, so that no process of the agent loads asyncio

        self._router = Router(keys, allow, endpoint, limits)
        self.endpoint = self._router.endpoint
        self._socket: zmq.asyncio.Socket = zmq.asyncio.Socket.from_socket(self._router.socket)

    @property
    def handshakes_refused(self) -> int:
        """See Router.handshakes_refused."""
        return self._router.handshakes_refused

    @property
    def messages_dropped(self) -> int:
        """See Router.messages_dropped; here a message has one part."""
        return self._router.messages_dropped

    async def receive(self) -> tuple[bytes, str, bytes]:
        """(origin, device, data) of the next message of a listed device; others are dropped and counted."""
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            device = self._router.device_of(frames[0])
            if len(frames) == 2 and device is not None:
                return frames[0].bytes, device, frames[1].bytes
            self._router.messages_dropped += 1

    async def send(self, origin: bytes, data: bytes) -> bool:
        """False when the connection is gone or its queue is full."""
        try:
            await self._socket.send_multipart([origin, data], zmq.NOBLOCK)
        except zmq.ZMQError as problem:
            return _unless_gone(problem)
        return True

    def close(self) -> None:
        """Cancel who waits in `receive` and close; returns within the linger's time."""
        self._router.socket.disable_monitor()
        self._socket.close()  # which closes the socket it was made from
        self._router.close()


def new_context() -> Context:
    """One I/O thread: two would let messages of one peer and its monitor's events overtake each other."""
    return zmq.Context(io_threads=1)


def new_poll() -> EventPoll:
    """An EventPoll of ZeroMQ sockets and file descriptors."""
    return EventPoll(zmq.Poller(), _READABLE)


def check_parts(parts: Sequence[Buffer], limits: Limits) -> None:
    """Raises ValueError for a part that the peer's libzmq would close the connection over."""
    for part in parts:
        if len(part) > limits.part_bytes:
            raise ValueError(f"message part of {len(part)} bytes, at most {limits.part_bytes}")


def _is_readable(socket: Socket) -> bool:
    return bool(cast(int, socket.getsockopt(zmq.EVENTS)) & _READABLE)


def _send_parts(socket: Socket, parts: Sequence[Buffer]) -> None:
    """All or nothing: libzmq refuses the first part or none. Raises ZMQError."""
    for part in parts[:-1]:
        socket.send(part, _MORE)
    socket.send(parts[-1], _NOW)


def _unless_gone(problem: zmq.ZMQError) -> bool:
    if problem.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
        return False
    raise problem


def _receive_parts(socket: Socket) -> list[Buffer] | None:
    """The parts of a message that is there, without a copy; None when they are more than MAX_PARTS."""
    parts: list[Buffer] = []
    count = 0
    while True:
        part = socket.recv(copy=False)
        count += 1
        if count <= MAX_PARTS:
            parts.append(part.buffer)
        if not part.more:
            return parts if count <= MAX_PARTS else None
