"""One connection of a load: a session's request out, the moments of its tokens in.

One connection per session and a parser straight behind the socket, so that the generator takes little of a machine
that it may share with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from agent.errors import ConfigError
from edgectl.event_stream import BadResponse, EventStream
from edgectl.load.generator import Order
from edgectl.load.summary import Outcome

CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 60.0
"""Nothing for so long, not even a comment, and the session counts as failed."""
LONGEST_S = 900.0
"""Of one try: comments alone do not keep it alive for ever."""
MOST_RETRY_AFTER_S = 60.0
REFUSALS = (429, 503)


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

    def request(self, order: Order, model: str, api_key: str | None = None) -> bytes:
        """The whole request of a session."""
        body = json.dumps(
            {
                "model": model,
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
        if api_key is not None:
            lines.append(f"Authorization: Bearer {api_key}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Try(asyncio.Protocol):
    """One connection of one session."""

    def __init__(
        self, order: Order, outcome: Outcome, *, silence_s: float = SILENCE_S, longest_s: float = LONGEST_S
    ) -> None:
        self._order = order
        self._outcome = outcome
        self._silence_s = silence_s
        self._longest_s = longest_s
        self._stream = EventStream()
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._began_s = self._heard_s = self._loop.time()
        self._finished = False
        self._transport: asyncio.WriteTransport | None = None

    async def run(self, server: Server, request: bytes) -> float | None:
        """Fills the outcome; seconds after which to come back when the server was busy, else None.

        Cancelled, it hangs up, and the outcome is that of a session that is not over.
        """
        try:
            await self._ask(server, request)
        except asyncio.CancelledError:
            # Closing its connection may have been taken for the server's doing.
            self._outcome.ended_s, self._outcome.end, self._outcome.problem = math.nan, "failed", ""
            raise
        finally:
            self._over.cancel()
            if self._transport is not None:
                self._transport.abort()
        return self._retry_after_s()

    async def _ask(self, server: Server, request: bytes) -> None:
        if not await self._connect(server):
            return
        assert self._transport is not None, "connected"
        self._transport.write(request)
        self._watch = self._loop.call_later(self._looks_in_s(), self._look)
        try:
            await self._over
        finally:
            self._watch.cancel()

    async def _connect(self, server: Server) -> bool:
        # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation that comes as the connection does.
        connecting = self._loop.create_task(
            self._loop.create_connection(lambda: self, server.host, server.port, ssl=server.tls)
        )
        try:
            await asyncio.wait({connecting}, timeout=CONNECT_TIMEOUT_S)
            if not connecting.done():
                self._fail(f"cannot connect: no answer in {CONNECT_TIMEOUT_S:.0f} s")
                return False
            connecting.result()
        except (OSError, ValueError) as problem:  # ValueError: a host that cannot be a name.
            self._fail(f"cannot connect: {problem}")
            return False
        finally:
            connecting.cancel()
        return True

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        if self._over.done():  # Cancelled as the connection came.
            transport.abort()

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

    def _looks_in_s(self) -> float:
        """Until the server has been silent, or the session open, for too long."""
        until_s = min(self._heard_s + self._silence_s, self._began_s + self._longest_s)
        return until_s - self._loop.time()

    def _look(self) -> None:
        """Ends a session that has been silent, or open, for too long."""
        left_s = self._looks_in_s()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._look)
        elif self._heard_s + self._silence_s <= self._began_s + self._longest_s:
            self._fail(f"silent for {self._silence_s:g} s")
        else:
            self._fail(f"not over after {self._longest_s:g} s")

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
