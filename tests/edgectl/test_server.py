"""The server as a client meets it: the official OpenAI client, and the errors of HTTP itself."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from agent.errors import ConfigError
from edgectl.engine import Claim, EngineError
from edgectl.server import MAX_BODY_BYTES, Clocks, create_app, serve_http
from tests.fakes.fake_engine import FakeEngine, Opening, Script
from tests.fakes.http_server import Served, bundled_tokenizer, serving

TEXT = "Hello wörld, 😀 this is — a test."
USER: Any = [{"role": "user", "content": "hi"}]


def words(text: str = TEXT) -> list[int]:
    return bundled_tokenizer().encode(text)


def by_seed(opening: Opening) -> Script:
    """Different seeds, different texts; the same seed, the same text."""
    if opening.sampling.temperature == 0:
        return Script(words())
    return Script([40 + (opening.sampling.seed * 31 + index * 7) % 50 for index in range(200)])


@asynccontextmanager
async def client(
    script: Callable[[Opening], Script] = lambda _: Script([*words(), 1]), **options: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, FakeEngine]]:
    engine = FakeEngine(script)
    async with (
        serving(engine, **options) as served,
        openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="sk-edge-1", max_retries=0) as official,
    ):
        yield official, engine


def test_a_chat_whole_and_streamed_is_the_same() -> None:
    async def scenario() -> None:
        async with client() as (official, engine):
            whole = await official.chat.completions.create(model="wiki-32l", messages=USER, user="me", store=True)
            stream = await official.chat.completions.create(
                model="wiki-32l", messages=USER, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        assert whole.choices[0].message.content == TEXT
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == len(words())
        assert whole.usage.prompt_tokens == len(engine.openings[0].prompt)
        assert chunks[0].choices[0].delta.role == "assistant"
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
        assert "".join(pieces) == TEXT
        assert "\ufffd" not in "".join(pieces)
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage == whole.usage

    asyncio.run(scenario())


def test_a_stop_string_across_tokens_is_cut_and_cancels() -> None:
    async def scenario() -> None:
        async with client(lambda _: Script(words())) as (official, engine):
            answer = await official.completions.create(
                model="wiki-32l", prompt="x", stop=["nowhere", "d, 😀"], max_tokens=100
            )
        assert answer.choices[0].text == "Hello wörl"
        assert answer.choices[0].finish_reason == "stop"
        assert engine.generations[0].sent < len(words())

    asyncio.run(scenario())


def test_seeds_repeat_and_samples_differ() -> None:
    async def scenario() -> None:
        async with client(by_seed) as (official, engine):
            first, again = [
                await official.completions.create(model="wiki-32l", prompt="x", seed=5, n=3) for _ in range(2)
            ]
            for _ in range(2):
                await official.completions.create(model="wiki-32l", prompt="x")
        assert [choice.text for choice in first.choices] == [choice.text for choice in again.choices]
        assert len({choice.text for choice in first.choices}) == 3
        assert [choice.finish_reason for choice in first.choices] == ["length"] * 3
        assert [opening.sampling.seed for opening in engine.openings[:3]] == [5, 6, 7]
        assert engine.openings[6].sampling.seed != engine.openings[7].sampling.seed

    asyncio.run(scenario())


def test_streamed_samples_carry_their_index() -> None:
    async def scenario() -> None:
        async with client(by_seed) as (official, _):
            whole = await official.chat.completions.create(
                model="wiki-32l", messages=USER, seed=5, n=3, max_completion_tokens=20
            )
            stream = await official.chat.completions.create(
                model="wiki-32l", messages=USER, seed=5, n=3, max_completion_tokens=20, stream=True
            )
            texts = ["", "", ""]
            order = []
            async for chunk in stream:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
                order.append(chunk.choices[0].index)
        assert texts == [choice.message.content for choice in whole.choices]
        assert order != sorted(order)

    asyncio.run(scenario())


def test_logprobs_in_both_shapes() -> None:
    def script(opening: Opening) -> Script:
        top = tuple((100 + rank, -1.0 - rank) for rank in range(opening.sampling.top_logprobs))
        return Script(words("hi €"), logprob=lambda index, _: -0.25 * index, top=lambda *_: top)

    async def scenario() -> None:
        async with client(script) as (official, _):
            chat = await official.chat.completions.create(
                model="wiki-32l", messages=USER, logprobs=True, top_logprobs=2
            )
            plain = await official.completions.create(model="wiki-32l", prompt="x", logprobs=2)
        assert chat.choices[0].logprobs is not None
        content = chat.choices[0].logprobs.content
        assert content is not None
        assert bytes(byte for token in content for byte in token.bytes or []).decode() == "hi €"
        assert [len(token.top_logprobs) for token in content] == [2] * len(content)
        assert [token.logprob for token in content] == [-0.25 * index for index in range(len(content))]
        columns = plain.choices[0].logprobs
        assert columns is not None
        assert columns.text_offset == [0, 1, 2, 3, 3, 3]
        assert columns.tokens == ["h", "i", " ", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
        assert columns.top_logprobs is not None
        assert [len(top) for top in columns.top_logprobs] == [3] * 6

    asyncio.run(scenario())


def test_a_batch_and_echo() -> None:
    async def scenario() -> None:
        async with client() as (official, _):
            batch = await official.completions.create(model="wiki-32l", prompt=["a", "b"], echo=True, max_tokens=99)
            stream = await official.completions.create(model="wiki-32l", prompt="a", echo=True, stream=True)
            pieces = [chunk.choices[0].text async for chunk in stream]
        assert [choice.text for choice in batch.choices] == ["a" + TEXT, "b" + TEXT]
        assert [choice.index for choice in batch.choices] == [0, 1]
        assert pieces[0] == "a"

    asyncio.run(scenario())


def test_closing_a_stream_cancels_the_session() -> None:
    async def scenario() -> None:
        async with client(lambda _: Script(words(), hold_after=3)) as (official, engine):
            stream = await official.chat.completions.create(model="wiki-32l", messages=USER, stream=True)
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            await stream.close()
            await asyncio.wait_for(engine.until(engine.generations[0].cancelled.is_set), 1.0)

    asyncio.run(scenario())


def test_errors_are_the_official_clients_exceptions() -> None:
    async def scenario() -> None:
        async with client() as (official, _):
            with pytest.raises(openai.NotFoundError) as missing:
                await official.completions.create(model="gpt-5", prompt="x")
            with pytest.raises(openai.BadRequestError) as bad:
                await official.completions.create(model="wiki-32l", prompt="x", max_tokens=0)
            with pytest.raises(openai.BadRequestError) as long:
                await official.completions.create(model="wiki-32l", prompt=[5] * 300)
            with pytest.raises(openai.BadRequestError) as tools:
                await official.chat.completions.create(
                    model="wiki-32l", messages=USER, tools=[{"type": "function", "function": {"name": "f"}}]
                )
            models = await official.models.list()
            one = await official.models.retrieve("wiki-32l")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert (bad.value.code, bad.value.param) == ("invalid_value", "max_tokens")
        assert long.value.code == "context_length_exceeded"
        assert "256" in long.value.message
        assert "300" in long.value.message
        assert tools.value.param == "tools"
        assert [model.id for model in models.data] == ["wiki-32l"] == [one.id]

    asyncio.run(scenario())


async def errors_of_http(served: Served) -> dict[str, tuple[int, str]]:
    http = served.client
    responses = {
        "path": await http.get("/v1/nothing"),
        "slash": await http.get("/v1/models/"),
        "method": await http.get("/v1/completions"),
        "delete": await http.delete("/metrics"),
        "json": await http.post("/v1/completions", content=b"{"),
        "empty": await http.post("/v1/chat/completions"),
        "model": await http.get("/v1/models/other/name"),
        "large": await http.post("/v1/completions", content=b"x" * (MAX_BODY_BYTES + 1)),
        "host": await http.get("/v1/models", headers={"host": "evil.example"}),
        "origin": await http.post("/v1/completions", headers={"origin": "https://evil.example"}, content=b"{}"),
    }
    for response in responses.values():
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert responses["method"].headers["allow"] == "POST"
    return {name: (r.status_code, r.json()["error"]["code"]) for name, r in responses.items()}


def test_errors_of_http_itself_have_openais_shape() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(lambda _: Script())) as served:
            assert await errors_of_http(served) == {
                "path": (404, "not_found"),
                "slash": (404, "model_not_found"),
                "method": (405, "method_not_allowed"),
                "delete": (405, "method_not_allowed"),
                "json": (400, "invalid_json"),
                "empty": (400, "invalid_json"),
                "model": (404, "model_not_found"),
                "large": (413, "body_too_large"),
                "host": (403, "host_not_allowed"),
                "origin": (403, "host_not_allowed"),
            }

    asyncio.run(scenario())


def test_a_body_of_the_largest_size_is_served() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(lambda _: Script(words()))) as served:
            body = b'{"model": "wiki-32l", "prompt": "x"}'
            full = await served.client.post("/v1/completions", content=body.rjust(MAX_BODY_BYTES))
            assert full.status_code == 200

    asyncio.run(scenario())


def test_a_bug_is_a_500_without_a_trace_of_it() -> None:
    class Broken(FakeEngine):
        def status(self) -> dict[str, object]:
            raise RuntimeError("/home/someone/secret.py")

    async def scenario() -> None:
        async with serving(Broken(lambda _: Script())) as served:
            response = await served.client.get("/edge/v1/status")
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "internal_error"
            assert "secret" not in response.text
            assert 'path="/edge/v1/status",status="500"' in (await served.client.get("/metrics")).text

    asyncio.run(scenario())


def test_a_body_that_never_comes_is_given_up() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(lambda _: Script()), clocks=Clocks(body_patience_s=0.02)) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            status = await reader.readline()
            writer.close()
            await writer.wait_closed()
        assert b"408" in status

    asyncio.run(scenario())


def test_health_follows_the_engine() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(lambda _: Script())) as served:
            healthy = await served.client.get("/healthz")
            served.engine.ready = False
            sick = await served.client.get("/healthz")
            status = await served.client.get("/edge/v1/status")
        assert (healthy.status_code, healthy.json()["status"]) == (200, "ok")
        assert (sick.status_code, sick.json()["devices_connected"]) == (503, 1)
        assert status.json() == {"model": "wiki-32l", "devices": []}

    asyncio.run(scenario())


def test_an_api_key_is_asked_for_where_there_are_any() -> None:
    async def scenario() -> None:
        keys = frozenset({hashlib.sha256(b"sk-edge-1").hexdigest()})
        async with client(api_keys=keys) as (official, _):
            assert (await official.completions.create(model="wiki-32l", prompt="x")).choices
            stranger = official.with_options(api_key="sk-edge-2")
            with pytest.raises(openai.AuthenticationError) as refused:
                await stranger.completions.create(model="wiki-32l", prompt="x")
        assert refused.value.code == "invalid_api_key"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"

    asyncio.run(scenario())


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        app = create_app(FakeEngine(lambda _: Script()), bundled_tokenizer())
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port}"):
            asyncio.run(serve_http(app, "127.0.0.1", port, lambda *_: None))


def test_stopping_the_server_ends_a_stream_within_its_patience() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(lambda _: Script(words(), hold_after=2))) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            body = b'{"model": "wiki-32l", "prompt": "x", "stream": true}'
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await reader.readuntil(b"data: ")
        assert served.engine.generations[0].cancelled.is_set()
        writer.close()
        await writer.wait_closed()

    asyncio.run(scenario())


def test_whose_request_it_is_and_how_urgent_reaches_the_engine() -> None:
    keys = {hashlib.sha256(b"sk-edge-1").hexdigest()}

    async def scenario() -> None:
        async with client(api_keys=keys, sessions_per_key=1) as (official, engine):
            await official.chat.completions.create(
                model="wiki-32l", messages=USER, n=3, extra_body={"priority": -7}, max_tokens=2
            )
        assert {opening.claim for opening in engine.openings} == {Claim(keys.copy().pop()[:12], -7)}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("refused", "status", "retry_after"),
    [
        (EngineError("queue_full", "64 wait", 17.0), 429, "17"),
        (EngineError("queue_full", "64 wait"), 429, "2"),
        (EngineError("too_many_sessions", "2 of this key", 4.2), 429, "5"),
        (EngineError("not_ready", "loading"), 503, "5"),
        (EngineError("context_length_exceeded", "2 and 99 more"), 400, None),
    ],
)
def test_who_cannot_be_served_now_is_told_when_to_come_back(
    refused: EngineError, status: int, retry_after: str | None
) -> None:
    async def scenario() -> None:
        async with client() as (official, engine):
            engine.refuse = refused
            with pytest.raises(openai.APIStatusError) as problem:
                await official.chat.completions.create(model="wiki-32l", messages=USER, stream=True)
        assert problem.value.status_code == status
        assert problem.value.response.headers.get("retry-after") == retry_after
        assert problem.value.code == refused.code

    asyncio.run(scenario())
