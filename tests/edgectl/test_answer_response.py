"""Answers over a real socket: server-sent events, silence, clients that hang up, failures half-way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edgectl.engine import EngineError
from edgectl.server import Clocks
from tests.fakes.fake_engine import FakeEngine, Opening, Script
from tests.fakes.http_server import Served, bundled_tokenizer, serving

TEXT = "one two three four"
STREAM = {"prompt": "x", "max_tokens": 100, "stream": True}


def words(text: str = TEXT) -> list[int]:
    return bundled_tokenizer().encode(text)


def events(body: str) -> list[Any]:
    """Parsed data lines; comments stay strings."""
    parts = body.split("\n\n")
    assert parts.pop() == ""
    return [json.loads(part[6:]) if part.startswith("data: {") else part for part in parts]


@asynccontextmanager
async def connection(served: Served, path: str, **body: Any) -> AsyncIterator[asyncio.StreamReader]:
    """A bare HTTP/1.1 request; leaving the block hangs up."""
    data = json.dumps({"model": served.engine.model, **body}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


def test_a_stream_is_one_event_per_piece_and_ends_with_done() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(lambda _: Script([*words(), 1]))) as served:
            response = await served.post("/v1/completions", **STREAM, stream_options={"include_usage": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        *chunks, usage, done = events(response.text)
        assert done == "data: [DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == len(words())
        assert all(chunk["usage"] is None for chunk in chunks)

    asyncio.run(scenario())


def test_a_long_silence_is_filled_with_comments() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script(words(), hold_after=0))
        async with (
            serving(engine, clocks=Clocks(keep_alive_s=0.01)) as served,
            connection(served, "/v1/completions", **STREAM) as reader,
        ):
            for _ in range(3):
                await reader.readuntil(b": keep-alive\n\n")
            engine.release.set()
            rest = await reader.readuntil(b"data: [DONE]\n\n")
        assert b"keep-alive" not in rest
        assert TEXT[:3].encode() in rest

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("hold_after", [0, 2])
def test_a_client_that_hangs_up_cancels_its_sessions(stream: bool, hold_after: int) -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script(words(), hold_after=hold_after))
        async with serving(engine) as served:
            async with connection(served, "/v1/completions", **{**STREAM, "stream": stream, "n": 3}) as reader:
                await engine.until(lambda: len(engine.generations) == 3)
                if stream and hold_after:
                    await reader.readuntil(b"data: ")
            await asyncio.wait_for(
                engine.until(lambda: all(generation.cancelled.is_set() for generation in engine.generations)), 1.0
            )
            scrape = await served.client.get("/metrics")
        assert "edge_sessions_open 0.0" in scrape.text
        assert 'edge_sessions_total{outcome="cancelled"} 3.0' in scrape.text

    asyncio.run(scenario())


def test_hanging_up_while_waiting_for_a_row_withdraws_the_session() -> None:
    class Full(FakeEngine):
        async def open(self, *_: object) -> Any:
            self.changed.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.release.set()

    async def scenario() -> None:
        engine = Full(lambda _: Script())
        async with serving(engine) as served:
            async with connection(served, "/v1/completions", **STREAM):
                await engine.changed.wait()
            await asyncio.wait_for(engine.release.wait(), 1.0)

    asyncio.run(scenario())


def test_a_failure_before_the_first_token_has_its_own_status() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script(words(), fail_after=0))
        async with serving(engine) as served:
            for stream in (True, False):
                response = await served.post("/v1/completions", prompt="x", stream=stream)
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "device_lost"
                assert response.headers["retry-after"] == "10"
                assert "secret" not in response.text

    asyncio.run(scenario())


def test_a_failure_after_the_first_byte_is_an_event_then_done() -> None:
    async def scenario() -> None:
        def script(opening: Opening) -> Script:
            if opening.sampling.seed == 1:
                return Script(words(), fail_after=3, code="answer_timeout")
            return Script(words(), hold_after=2)

        engine = FakeEngine(script)
        async with serving(engine) as served:
            response = await served.post("/v1/completions", **STREAM, n=3, seed=0)
            await engine.until(lambda: all(generation.cancelled.is_set() for generation in engine.generations))
        *chunks, error, done = events(response.text)
        assert response.status_code == 200
        assert chunks
        assert error["error"]["code"] == "answer_timeout"
        assert error["error"]["type"] == "server_error"
        assert done == "data: [DONE]"
        assert "secret" not in response.text

    asyncio.run(scenario())


def test_a_batch_that_fails_half_way_cancels_the_rest() -> None:
    async def scenario() -> None:
        def script(opening: Opening) -> Script:
            return Script(words(), fail_after=2) if opening.prompt == (7,) else Script(words(), hold_after=1)

        engine = FakeEngine(script)
        async with serving(engine) as served:
            response = await served.post("/v1/completions", prompt=[[5], [6], [7], [8]])
        assert response.status_code == 503
        assert len(engine.generations) == 4
        assert all(generation.cancelled.is_set() for generation in engine.generations)

    asyncio.run(scenario())


@pytest.mark.parametrize(("code", "status"), [("no_agent", 503), ("queue_full", 429), ("out_of_memory", 503)])
def test_refusals_of_the_engine_have_their_status_streaming_or_not(code: str, status: int) -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script(), refuse=EngineError(code, "on jetson-2", retry_after_s=4))
        async with serving(engine) as served:
            for stream in (True, False):
                response = await served.post("/v1/completions", prompt="x", stream=stream)
                assert (response.status_code, response.json()["error"]["code"]) == (status, code)
                assert response.headers["retry-after"] == "4"
                assert "jetson" not in response.text

    asyncio.run(scenario())
