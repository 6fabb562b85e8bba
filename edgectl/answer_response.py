"""An answer as an HTTP response: whole JSON or server-sent events (WHATWG HTML, 9.2), and clients that hang up.

The response owns its Answer and closes it on every way out, so a client that disconnects cancels its sessions even
before the first byte. Nothing is sent until something has happened; an error before that has its own HTTP status.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from edgectl.answer import Answer, AnswerEvent, Finished, Opened
from edgectl.choice_text import Piece
from edgectl.openai_api import Ask
from edgectl.openai_errors import ApiError
from edgectl.openai_responses import Json, Shape, WholeChoice, usage_of

LOG = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's shape."""
    headers = error.headers()
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(error.body(), error.http_status, headers)


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


class AnswerResponse(Response):
    """Runs an answer and sends it; `keep_alive_s` bounds the silence of a stream."""

    def __init__(self, ask: Ask, answer: Answer, shape: Shape, keep_alive_s: float) -> None:
        super().__init__()
        self._ask = ask
        self._answer = answer
        self._shape = shape
        self._keep_alive_s = keep_alive_s
        self._completion_tokens = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._answer.start()
        hung_up = asyncio.create_task(_hung_up(receive))
        sending = asyncio.create_task(self._send(scope, receive, send))
        try:
            await asyncio.wait({hung_up, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                LOG.info("client hung up")
        finally:
            hung_up.cancel()
            sending.cancel()
            await self._answer.close()
            await asyncio.gather(hung_up, sending, return_exceptions=True)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._ask.stream:
            await self._send_stream(scope, receive, send)
            return
        try:
            response = json_response(await self._whole())
        except ApiError as error:
            response = error_response(error)
        await response(scope, receive, send)

    async def _whole(self) -> Json:
        choices = [WholeChoice() for _ in self._ask.choices]
        while (event := await self._answer.next()) is not None:
            if isinstance(event, Piece):
                choices[event.index].add(event)
            elif isinstance(event, Finished):
                choices[event.index].reason = event.reason
                self._completion_tokens += event.tokens
        return self._shape.whole(choices, self._usage())

    async def _send_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunk: bytes | None
        try:
            chunk = await self._first_chunk()
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while chunk is not None:
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk = await self._next_chunk()
            closing = _event(self._shape.closing(self._usage())) if self._ask.include_usage else b""
        except ApiError as error:
            closing = _event(error.body())
        await send({"type": "http.response.body", "body": closing + DONE, "more_body": False})

    async def _first_chunk(self) -> bytes:
        """What there is to send once a choice has text or has ended, or after a long silence.

        Until then the response has not begun: a session that is lost during its prefill is still an HTTP error, which
        clients know how to retry.
        """
        chunk = b""
        while True:
            try:
                event = await self._answer.next(self._keep_alive_s)
            except asyncio.TimeoutError:
                return chunk + KEEP_ALIVE
            if event is not None:
                chunk += self._rendered(event)
            if not isinstance(event, Opened):
                return chunk

    async def _next_chunk(self) -> bytes | None:
        """One event, a comment after a long silence, None at the end."""
        try:
            event = await self._answer.next(self._keep_alive_s)
        except asyncio.TimeoutError:
            return KEEP_ALIVE
        return None if event is None else self._rendered(event)

    def _rendered(self, event: AnswerEvent) -> bytes:
        if isinstance(event, Opened):
            opening = self._shape.opening(event.index)
            return b"" if opening is None else _event(opening)
        if isinstance(event, Piece):
            return _event(self._shape.delta(event))
        self._completion_tokens += event.tokens
        return _event(self._shape.ending(event.index, event.reason))

    def _usage(self) -> Json:
        return usage_of(self._ask.prompt_tokens, self._completion_tokens)


async def _hung_up(receive: Receive) -> None:
    """Returns when the client has closed the connection; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(body: object) -> bytes:
    """One server-sent event: JSON has no raw line breaks, so it is one `data` line."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
