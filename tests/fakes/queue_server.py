"""A server with one queue: streaming completions that take a known time each, first come, first served.

Raw HTTP on a real socket. `schedule` keeps when every session arrived and what it was promised, so that a test knows
what its client must have seen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Served:
    """One session: moments of the loop's clock."""

    arrived_s: float
    first_s: float
    over_s: float
    body: dict[str, Any]
    authorization: str


@dataclass
class QueueServer:
    """`service_s(n)` is how long session n (in order of arrival) keeps the one server busy."""

    service_s: Callable[[int], float]
    refuse: Callable[[int], bytes] = lambda number: b""
    """A whole response in place of an answer, for the n-th connection; empty: serve it."""
    plain: bool = False
    """Like a server without our extensions: no token ids."""
    port: int = 0
    served: list[Served] = field(default_factory=list)
    connections: int = 0
    hung_up: int = 0
    busy_until_s: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.hung_up += 1
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        arrived_s = clock()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = json.loads(await reader.readexactly(int(fields["Content-Length"])))
        number = self.connections
        self.connections += 1
        refusal = self.refuse(number)
        if refusal:
            writer.write(refusal)
            await writer.drain()
            return
        begin_s = max(arrived_s, self.busy_until_s)
        over_s = self.busy_until_s = begin_s + self.service_s(len(self.served))
        tokens = body["max_tokens"]
        each_s = (over_s - begin_s) / tokens
        self.served.append(Served(arrived_s, begin_s + each_s, over_s, body, fields.get("Authorization", "")))
        writer.write(HEAD)
        for index in range(tokens):
            await asyncio.sleep(begin_s + (index + 1) * each_s - clock())
            choice = {"index": 0, "text": "x", "finish_reason": None}
            if not self.plain:
                choice["token_ids"] = [index]
            writer.write(chunk(event({"choices": [choice]})))
            await writer.drain()
            if writer.is_closing():
                raise ConnectionResetError
        last = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
        usage = {"choices": [], "usage": {"completion_tokens": tokens}}
        writer.write(chunk(event(last)) + chunk(event(usage) + b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def refusal(status: int, code: str, retry_after: str = "") -> bytes:
    """A whole response that refuses."""
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    retry = f"Retry-After: {retry_after}\r\n" if retry_after else ""
    return f"HTTP/1.1 {status} No\r\n{retry}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def queueing(server: QueueServer) -> AsyncIterator[QueueServer]:
    """Listens until the block ends."""
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
