"""The bulk sockets: a ROUTER that gives parts of models away, and DEALERs that fetch them. Knows no file.

One thread uses each end. Both are apart from the data plane, so that weights under way never stand before a token.
"""

from __future__ import annotations

from functools import partial

from agent.wire.bulk import MAX_CHUNK_BYTES, Fetch, Reply, encode_fetch, encode_reply
from agent.wire.events import Connected, Disconnected, Event, Readable, Received, Refused, Replied
from agent.wire.security import AllowList, KeyPair
from agent.wire.transport import Dealer, DealerEvents, Limits, Router, new_context, new_poll

BULK_LIMITS = Limits(queue=16, part_bytes=MAX_CHUNK_BYTES, linger_ms=0)
"""16 chunks of a megabyte wait for one client at most: twice what it keeps in flight. What does not fit is dropped and
asked again. No linger: whoever closes wants nothing any more."""


class BulkServerPlane:
    """Where parts are fetched from. Raises ConfigError when it cannot bind."""

    def __init__(self, keys: KeyPair, allow: AllowList, bind: str) -> None:
        self._router = Router(keys, allow, bind, BULK_LIMITS)
        self._poll = new_poll()
        self._poll.watch(self._router.socket, self._receive)

    @property
    def endpoint(self) -> str:
        """Where others connect to, with the port that was chosen."""
        return self._router.endpoint

    @property
    def handshakes_refused(self) -> int:
        """Connections that did not prove to be a device of the list."""
        return self._router.handshakes_refused

    def reply(self, origin: bytes, reply: Reply) -> bool:
        """False when the client is gone or reads nothing."""
        return self._router.send(origin, encode_reply(reply))

    def register(self, descriptor: int) -> None:
        """Report Readable for a file descriptor too."""
        self._poll.watch(descriptor, lambda events: events.append(Readable(descriptor)))

    def poll(self, timeout_ms: int | None) -> list[Event]:
        """Received and Readable events, after at most `timeout_ms`."""
        return self._poll.poll(timeout_ms)

    def close(self) -> None:
        """Close all connections at once."""
        self._router.close()

    def _receive(self, events: list[Event]) -> None:
        message = self._router.receive()
        if message is not None:
            events.append(Received(*message))


class BulkClient:
    """Connections to the sources of one fetch."""

    def __init__(self, keys: KeyPair) -> None:
        self._keys = keys
        self._context = new_context()
        self._poll = new_poll()
        self._dealers: dict[str, Dealer] = {}

    def connect(self, source: str, endpoint: str, key: str) -> None:
        """Connect to a source. Raises ConfigError for an endpoint or a key that is none."""
        events = DealerEvents(
            received=partial(Replied, source),
            connected=partial(Connected, source),
            disconnected=partial(Disconnected, source),
            refused=partial(Refused, source),
        )
        self._dealers[source] = Dealer(
            self._context,
            self._poll,
            endpoint,
            keys=self._keys,
            server_key=key,
            limits=BULK_LIMITS,
            events=events,
        )

    def ask(self, source: str, fetch: Fetch) -> bool:
        """False when the request did not leave."""
        dealer = self._dealers.get(source)
        return dealer is not None and dealer.send(encode_fetch(fetch))

    def disconnect(self, source: str) -> None:
        """Hear nothing more of a source; unknown ones are ignored."""
        dealer = self._dealers.pop(source, None)
        if dealer is not None:
            dealer.close()

    def register(self, descriptor: int) -> None:
        """Report Readable for a file descriptor too."""
        self._poll.watch(descriptor, lambda events: events.append(Readable(descriptor)))

    def poll(self, timeout_ms: int | None) -> list[Event]:
        """Replied, Connected, Disconnected, Refused and Readable events, after at most `timeout_ms`."""
        return self._poll.poll(timeout_ms)

    def close(self) -> None:
        """Close all connections at once."""
        for source in list(self._dealers):
            self.disconnect(source)
        self._context.term()
