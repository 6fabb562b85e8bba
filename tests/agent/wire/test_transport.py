"""Sockets that are not the project's own: hostile peers, wrong keys, limits, full queues."""

from __future__ import annotations

import socket as tcp
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
import zmq

from agent.errors import ConfigError
from agent.wire import transport
from agent.wire.event_poll import EventPoll
from agent.wire.events import Connected, Disconnected, Event, Refused, Replied
from agent.wire.security import AllowList, KeyPair, generate_keys
from agent.wire.transport import Dealer, DealerEvents, Limits, Router, new_context, new_poll

LIMITS = Limits(queue=8, part_bytes=1 << 16, linger_ms=0, full_is_lost=True)
LOOPBACK = "tcp://127.0.0.1:0"
SERVER, CLIENT, STRANGER = generate_keys(), generate_keys(), generate_keys()
EVENTS = DealerEvents(
    received=lambda parts: Replied("server", parts),
    connected=lambda again: Connected("server", again),
    disconnected=lambda: Disconnected("server"),
    refused=lambda: Refused("server"),
)


@pytest.fixture
def router() -> Iterator[Router]:
    with closing(Router(SERVER, AllowList({CLIENT.public: "client"}), LOOPBACK, LIMITS)) as bound:
        yield bound


@contextmanager
def dealer(
    endpoint: str, *, keys: KeyPair = CLIENT, server_key: str = SERVER.public, limits: Limits = LIMITS
) -> Iterator[tuple[Dealer, EventPoll]]:
    context, poll = new_context(), new_poll()
    connecting = Dealer(context, poll, endpoint, keys=keys, server_key=server_key, limits=limits, events=EVENTS)
    try:
        yield connecting, poll
    finally:
        connecting.close()
        context.term()


@contextmanager
def raw_dealer(endpoint: str, configure: Callable[[zmq.Socket[bytes]], None]) -> Iterator[zmq.Socket[bytes]]:
    """A peer that does as it likes, with the listed key unless `configure` takes another."""
    context = new_context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.curve_serverkey = SERVER.public.encode()
    socket.curve_publickey, socket.curve_secretkey = CLIENT.public.encode(), CLIENT.secret.encode()
    configure(socket)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close()
        context.term()


def messages(router: Router, wait_ms: int = 5000) -> list[tuple[str, list[bytes]]]:
    """The next message, unless it had to be dropped."""
    assert router.socket.poll(wait_ms)
    message = router.receive()
    return [] if message is None else [(message[1], [bytes(part) for part in message[2]])]


def test_a_message_there_and_back(router: Router) -> None:
    with dealer(router.endpoint) as (client, poll):
        assert not client.send([b"early"])
        assert poll.poll(5000) == [Connected("server", again=False)]
        assert client.send([b"header", memoryview(b"payload"), bytearray(b"")])
        assert router.socket.poll(5000)
        message = router.receive()
        assert message is not None
        origin, device, parts = message
        assert (device, [bytes(part) for part in parts]) == ("client", [b"header", b"payload", b""])
        assert router.send(origin, [b"back", b""])
        [reply] = poll.poll(5000)
        assert isinstance(reply, Replied)
        assert [bytes(part) for part in reply.parts] == [b"back", b""]
        assert not router.send(b"nobody", [b"back"])


def test_a_stranger_is_refused_counted_and_told(router: Router) -> None:
    with dealer(router.endpoint, keys=STRANGER) as (client, poll):
        assert poll.poll(5000) == [Refused("server")]
        assert not client.send([b"x"])
    assert router.handshakes_refused == 1
    assert not router.socket.poll(0)


def test_a_refused_device_is_let_in_once_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REDIAL_MS", 20)
    allow = AllowList()
    with (
        closing(Router(SERVER, allow, LOOPBACK, LIMITS)) as router,
        dealer(router.endpoint) as (_, poll),
    ):
        assert poll.poll(5000) == [Refused("server")]
        assert poll.poll(5000) == [Refused("server")]
        allow.allow(CLIENT.public, "client")
        assert poll.poll(5000) == [Connected("server", again=False)]


def test_a_server_with_another_key_gets_nothing(router: Router) -> None:
    with dealer(router.endpoint, server_key=STRANGER.public) as (client, poll):
        while router.handshakes_refused == 0:
            assert poll.poll(1) == []
        assert not client.send([b"x"])
    assert not router.socket.poll(0)


def test_a_peer_without_curve_is_counted(router: Router) -> None:
    context = new_context()
    plain = context.socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(router.endpoint)
    plain.send(b"x")
    with tcp.create_connection(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(200))
        while router.handshakes_refused < 1:
            assert not router.socket.poll(1)
    plain.close()
    context.term()


def test_a_revoked_device_is_not_heard_any_more() -> None:
    allow = AllowList({CLIENT.public: "client"})
    with (
        closing(Router(SERVER, allow, LOOPBACK, LIMITS)) as router,
        dealer(router.endpoint) as (client, poll),
    ):
        poll.poll(5000)
        assert client.send([b"1"])
        assert messages(router) == [("client", [b"1"])]
        allow.revoke(CLIENT.public)
        assert client.send([b"2"])
        assert messages(router) == []
        assert router.messages_dropped == 1


def test_the_name_comes_from_the_key_not_from_the_routing_id(router: Router) -> None:
    with raw_dealer(router.endpoint, lambda s: s.setsockopt(zmq.ROUTING_ID, b"coordinator")) as socket:
        socket.send(b"x")
        assert messages(router) == [("client", [b"x"])]


def test_more_parts_than_the_protocol_knows_are_dropped(router: Router) -> None:
    with raw_dealer(router.endpoint, lambda s: None) as socket:
        socket.send_multipart([b""] * 5)
        socket.send_multipart([b""] * 1000)
        socket.send_multipart([b"a", b"b", b"c", b"d"])
        assert messages(router) == messages(router) == []
        assert messages(router) == [("client", [b"a", b"b", b"c", b"d"])]
        assert router.messages_dropped == 2


def test_a_part_beyond_the_limit_closes_the_connection_only(router: Router) -> None:
    with raw_dealer(router.endpoint, lambda s: None) as socket:
        socket.send(bytes(LIMITS.part_bytes))
        assert messages(router) == [("client", [bytes(LIMITS.part_bytes)])]
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.send(bytes(LIMITS.part_bytes + 1))
        assert monitor.poll(5000)
        socket.disable_monitor()
        monitor.close()
    with dealer(router.endpoint) as (client, poll):
        poll.poll(5000)
        with pytest.raises(ValueError, match="65537 bytes, at most 65536"):
            client.send([b"", bytes(LIMITS.part_bytes + 1)])
        assert client.send([b"x"])
        assert messages(router) == [("client", [b"x"])]


def fill(client: Dealer) -> None:
    """Send to a router that reads nothing until a message is not taken: its queue, the kernel's buffers, ours."""
    while client.send([bytes(LIMITS.part_bytes)]):
        pass


def test_a_full_queue_is_a_lost_connection_for_those_who_send_again(router: Router) -> None:
    with dealer(router.endpoint) as (client, poll):
        poll.poll(5000)
        fill(client)
        assert not client.is_connected
        events: list[Event] = []
        while len(events) < 2:
            events += poll.poll(5000)
        assert events == [Disconnected("server"), Connected("server", again=True)]
        assert client.send([b"again"])


def test_a_full_queue_is_only_that_for_the_others(router: Router) -> None:
    limits = Limits(queue=LIMITS.queue, part_bytes=LIMITS.part_bytes, linger_ms=0)
    with dealer(router.endpoint, limits=limits) as (client, poll):
        poll.poll(5000)
        fill(client)
        assert client.is_connected
        assert poll.poll(0) == []


def test_nothing_is_sent_before_the_lost_connection_was_handed_out() -> None:
    """Rule 3: a new frame must not overtake the kept ones on a new connection."""
    allow = AllowList({CLIENT.public: "client"})
    first = Router(SERVER, allow, LOOPBACK, LIMITS)
    endpoint = first.endpoint
    with dealer(endpoint) as (client, poll):
        poll.poll(5000)
        first.close()
        with closing(Router(SERVER, allow, endpoint, LIMITS)) as second:
            # Wait, without polling, until the new connection stands.
            while not client._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
                assert not client.send([b"too early"])
            assert not client.send([b"too early"])
            events: list[Event] = []
            while len(events) < 2:
                events += poll.poll(5000)
            assert events == [Disconnected("server"), Connected("server", again=True)]
            assert client.send([b"now"])
            assert messages(second) == [("client", [b"now"])]


def test_a_silent_link_is_tried_again_within_a_second(router: Router) -> None:
    """tests/edgectl/test_netns.py has links that lose packets, on this kernel; older ones wait longer for a SYN."""
    with dealer(router.endpoint) as (client, _):
        options = (zmq.CONNECT_TIMEOUT, zmq.RECONNECT_IVL_MAX, zmq.TCP_MAXRT)
        connect_ms, pause_ms, silence_ms = (client._socket.getsockopt(option) for option in options)
        assert 0 < connect_ms + pause_ms <= 800
        assert 0 < silence_ms <= 1500


def test_errors_name_the_endpoint(router: Router) -> None:
    for taken in (router.endpoint, "tcp://127.0.0.1:notaport", "nowhere"):
        with pytest.raises(ConfigError, match=f"cannot bind {taken}"):
            Router(SERVER, AllowList(), taken, LIMITS)
    context, poll = new_context(), new_poll()
    others = ("tcp://", "nowhere", "ipc:///tmp/x", "inproc://x", "tcp://127.0.0.1:9;127.0.0.1:1")
    for endpoint, key in (*((other, SERVER.public) for other in others), (router.endpoint, "no key")):
        with pytest.raises(ConfigError, match=f"cannot connect to {endpoint}"):
            Dealer(context, poll, endpoint, keys=CLIENT, server_key=key, limits=LIMITS, events=EVENTS)
    context.term()
