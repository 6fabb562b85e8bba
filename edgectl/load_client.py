"""The load generator's HTTP side: offers the sessions of a load to one server and notes when their tokens come.

One connection per session, one asyncio loop, and a parser straight behind the socket. A session of an open loop is due
at its time whatever happened to the others; where the generator is late, the latency still counts from when it was due.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from agent.errors import ConfigError
from edgectl.event_stream import BadResponse, EventStream
from edgectl.load_generator import Load, Order, arrivals_s, order_of
from edgectl.load_summary import Outcome

CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 60.0
"""Nothing for so long, not even a comment, and the session counts as failed."""
LONGEST_S = 900.0
"""Of one try: comments alone do not keep it alive for ever."""
PAUSE_S = 1.0
"""A client of a closed loop waits so long after a failure: a server that is gone is not asked a thousand times."""
DRAIN_S = 300.0
"""After the last session was offered, those under way have this long."""
MOST_OPEN = 1000
"""Connections at a time; sessions of an open loop that find no place wait, and their latency counts."""
MOST_RETRY_AFTER_S = 60.0
REFUSALS = (429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """How a load is put to a server; it ends after `sessions` or `seconds`, whichever is first."""

    load: Load
    model: str
    sessions: int | None = None
    seconds: float | None = None
    api_keys: tuple[str, ...] = ()
    """One per key of the load; empty for a server that asks for none."""
    retries: int = 0
    """How often a session that was refused comes back when Retry-After says."""
    most_open: int = MOST_OPEN
    drain_s: float = DRAIN_S


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    """What we read of a completion's chunk; other servers' fields are passed over."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: Any = None


@dataclass(frozen=True, slots=True)
class Server:
    """Where sessions are sent."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def of_url(cls, url: str) -> Server:
        """`http://host:port`, with or without `/v1`. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as problem:
            raise ConfigError(f"{url}: {problem}") from problem
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url}: expected http://host:port")
        path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/completions"
        return cls(parts.hostname, port, path, ssl.create_default_context() if parts.scheme == "https" else None)

    def request(self, order: Order, offer: Offer) -> bytes:
        """The whole request of a session."""
        body = json.dumps(
            {
                "model": offer.model,
                "prompt": list(order.prompt),
                "max_tokens": order.max_tokens,
                "seed": order.seed,
                "stream": True,
                "stream_options": {"include_usage": True},
                "ignore_eos": True,
                "return_token_ids": True,
            },
            separators=(",", ":"),
        ).encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Accept: text/event-stream",
            "Connection: close",
        ]
        if offer.api_keys:
            lines.append(f"Authorization: Bearer {offer.api_keys[order.key % len(offer.api_keys)]}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def offer_load(
    server: Server, offer: Offer, progress: Callable[[int, int], None] = lambda done, offered: None
) -> list[Outcome]:
    """Offers all of it and returns how every session went, by number. A session that fails raises nothing.

    `progress` hears how many sessions are over and how many were offered.
    """
    run = _Run(server, offer, progress)
    await (run.open_loop() if offer.load.is_open else run.closed_loop())
    return sorted(run.outcomes, key=lambda outcome: outcome.number)


@dataclass(slots=True)
class _Run:
    server: Server
    offer: Offer
    progress: Callable[[int, int], None]
    outcomes: list[Outcome] = field(default_factory=list)
    over: int = 0
    clock: Callable[[], float] = field(init=False)
    begin_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.begin_s = self.clock()

    async def open_loop(self) -> None:
        places = asyncio.Semaphore(self.offer.most_open)
        sessions: list[asyncio.Task[None]] = []
        for number, arrival_s in enumerate(arrivals_s(self.offer.load)):
            if self._enough(number, arrival_s):
                break
            order = order_of(self.offer.load, number)
            await asyncio.sleep(self.begin_s + arrival_s - self.clock())
            outcome = self._due(order, self.begin_s + arrival_s)
            sessions.append(asyncio.create_task(self._placed(order, outcome, places)))
        await self._drain(sessions)

    async def closed_loop(self) -> None:
        numbers = iter(range(self.offer.sessions if self.offer.sessions is not None else 1 << 62))
        clients = [asyncio.create_task(self._client(numbers)) for _ in range(self.offer.load.concurrency or 1)]
        if self.offer.seconds is not None:
            await asyncio.wait(clients, timeout=self.offer.seconds)
            await self._drain(clients)
        else:
            await asyncio.gather(*clients)

    async def _client(self, numbers: Any) -> None:
        """Asks for one session after the other."""
        for number in numbers:
            if self._enough(number, self.clock() - self.begin_s):
                return
            order = order_of(self.offer.load, number)
            outcome = self._due(order, self.clock())
            pause_s = await self._session(order, outcome)
            if outcome.end in ("refused", "failed"):
                await asyncio.sleep(pause_s or PAUSE_S)

    def _enough(self, number: int, elapsed_s: float) -> bool:
        offer = self.offer
        return (offer.sessions is not None and number >= offer.sessions) or (
            offer.seconds is not None and elapsed_s >= offer.seconds
        )

    def _due(self, order: Order, due_s: float) -> Outcome:
        outcome = Outcome(order.number, order.key, len(order.prompt), order.max_tokens, due_s)
        self.outcomes.append(outcome)
        return outcome

    async def _drain(self, sessions: list[asyncio.Task[None]]) -> None:
        if not sessions:
            return
        _, late = await asyncio.wait(sessions, timeout=self.offer.drain_s)
        for session in late:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        for session in sessions:
            if not session.cancelled():
                session.result()
        for outcome in self.outcomes:
            if math.isnan(outcome.ended_s):
                outcome.ended_s, outcome.problem = self.clock(), "not over in time"
            if math.isnan(outcome.sent_s):
                outcome.sent_s = outcome.ended_s

    async def _placed(self, order: Order, outcome: Outcome, places: asyncio.Semaphore) -> None:
        async with places:
            await self._session(order, outcome)

    async def _session(self, order: Order, outcome: Outcome) -> float | None:
        """Returns when to come back, where the server refused it and said so."""
        outcome.sent_s = self.clock()
        request = self.server.request(order, self.offer)
        while True:
            outcome.tries += 1
            retry_after_s = await _Try(order, outcome).run(self.server, request)
            if retry_after_s is None or outcome.tries > self.offer.retries:
                break
            await asyncio.sleep(retry_after_s)
        self.over += 1
        self.progress(self.over, len(self.outcomes))
        return retry_after_s


class _Try(asyncio.Protocol):
    """One connection of one session."""

    def __init__(self, order: Order, outcome: Outcome) -> None:
        self._order = order
        self._outcome = outcome
        self._stream = EventStream()
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._began_s = self._heard_s = self._loop.time()
        self._finished = False
        self._transport: asyncio.BaseTransport | None = None

    async def run(self, server: Server, request: bytes) -> float | None:
        """Fills the outcome; seconds after which to come back when the server was busy, else None."""
        try:
            await asyncio.wait_for(
                self._loop.create_connection(lambda: self, server.host, server.port, ssl=server.tls),
                CONNECT_TIMEOUT_S,
            )
        except (OSError, asyncio.TimeoutError) as problem:
            self._fail(f"cannot connect: {problem or 'no answer'}")
            return None
        transport = self._transport
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(request)
        watch = self._loop.call_later(SILENCE_S, self._look)
        try:
            await self._over
        finally:
            watch.cancel()
            transport.abort()
        return self._retry_after_s()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = self._heard_s = self._loop.time()
        if self._over.done():
            return
        try:
            for event in self._stream.feed(data):
                self._on_event(event, now)
        except (BadResponse, msgspec.DecodeError) as problem:
            self._fail(f"no answer of a completion: {problem}")
        if self._stream.done:
            self._complete()

    def connection_lost(self, problem: Exception | None) -> None:
        if self._over.done():
            return
        try:
            self._stream.end()
        except BadResponse as bad:
            self._fail(str(problem or bad))
        else:
            self._complete()

    # --- what happens ---

    def _on_event(self, event: bytes, now: float) -> None:
        if event == b"[DONE]" or self._over.done():
            return
        chunk = msgspec.json.decode(event, type=_Chunk)
        if chunk.error is not None:
            code = chunk.error.get("code") if isinstance(chunk.error, dict) else None
            self._fail(f"broke off: {code or 'error'}")
            return
        outcome = self._outcome
        for choice in chunk.choices:
            # A server without the extension sends no ids: one chunk with text is a token, and the usage corrects it.
            tokens = bool(choice.text) if choice.token_ids is None else len(choice.token_ids)
            if tokens:
                outcome.arrivals_s.append(now)
                outcome.tokens += tokens
            self._finished |= choice.finish_reason is not None
        if chunk.usage is not None:
            outcome.tokens = max(outcome.tokens, chunk.usage.completion_tokens)
        if self._order.hang_up_after is not None and outcome.tokens >= self._order.hang_up_after:
            outcome.end = "cancelled"
            self._settle()

    def _complete(self) -> None:
        """The response is here as a whole."""
        if self._over.done():
            return
        if self._stream.status == 200 and self._finished:
            self._outcome.end, self._outcome.problem = "completed", ""
            self._settle()
        elif self._stream.status == 200:
            self._fail("broke off: no finish reason")
        else:
            status = self._stream.status
            self._outcome.end = "refused" if status in REFUSALS else "failed"
            self._outcome.problem = f"HTTP {status} {_code_of(self._stream.body)}".rstrip()
            self._settle()

    def _fail(self, problem: str) -> None:
        self._outcome.end, self._outcome.problem = "failed", problem
        self._settle()

    def _settle(self) -> None:
        if not self._over.done():
            self._outcome.ended_s = self._loop.time()
            self._over.set_result(None)

    def _look(self) -> None:
        """Ends a connection that has been silent for too long."""
        now = self._loop.time()
        left_s = self._heard_s + SILENCE_S - now
        if self._over.done():
            return
        if left_s <= 0:
            self._fail(f"silent for {SILENCE_S:.0f} s")
        elif now - self._began_s > LONGEST_S:
            self._fail(f"not over after {LONGEST_S:.0f} s")
        else:
            self._loop.call_later(left_s, self._look)

    def _retry_after_s(self) -> float | None:
        if self._outcome.end != "refused":
            return None
        text = self._stream.headers.get("retry-after", "")
        seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1
        return min(float(max(1, seconds)), MOST_RETRY_AFTER_S)


def _code_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])[:80]
    except (ValueError, KeyError, TypeError):
        return ""
