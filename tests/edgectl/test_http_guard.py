from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection
from typing import Any

import pytest

from agent.errors import ConfigError
from edgectl.http_guard import KEY_OF_SCOPE, Guard, Message, Receive, Scope, Send, check_bind
from edgectl.openai_errors import ApiError

KEY = "sk-edge-1"
DIGESTS = frozenset({hashlib.sha256(key.encode()).hexdigest() for key in (KEY, "sk-edge-2")})


def status_of(path: str = "/v1/models", keys: Collection[str] | None = None, **headers: str) -> int:
    """Status of one GET through a guard whose app always says 200."""
    sent: list[Message] = []
    counted: list[tuple[str, int]] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def respond(error: ApiError, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": error.http_status, "headers": []})

    async def receive() -> Message:
        raise AssertionError("the guard reads no body")

    async def send(message: Message) -> None:
        sent.append(message)

    guard = Guard(app, api_keys=keys, respond=respond, answered=lambda *args: counted.append(args))
    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]}
    asyncio.run(guard(scope, receive, send))
    assert counted == [(path, sent[0]["status"])]
    return int(sent[0]["status"])


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "LOCALHOST:80"])
def test_loopback_names_pass_without_keys(host: str) -> None:
    assert status_of(host=host) == 200
    assert status_of(host=host, origin="http://localhost:3000") == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "[", "192.168.0.7", "a@b"],
)
def test_other_names_do_not_even_when_they_resolve_to_loopback(host: str) -> None:
    assert status_of(host=host) == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "["])
def test_a_page_of_another_site_may_not_post_here(origin: str) -> None:
    assert status_of(host="localhost", origin=origin) == 403


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", "Bearer sk-edge-2", f"Bearer  {KEY} "])
def test_a_known_key_opens_every_name(authorization: str) -> None:
    assert status_of(keys=DIGESTS, host="gpu.lan", authorization=authorization) == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer é"]
)
def test_without_a_known_key_only_health_is_open(authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    assert status_of(keys=DIGESTS, host="localhost", **headers) == 401
    assert status_of("/metrics", keys=DIGESTS, host="localhost", **headers) == 401
    assert status_of("/healthz", keys=DIGESTS, host="localhost", **headers) == 200


def test_the_digest_itself_is_no_key() -> None:
    assert status_of(keys=DIGESTS, authorization=f"Bearer {next(iter(DIGESTS))}") == 401


def test_an_app_that_breaks_counts_as_500_and_one_that_says_nothing_as_499() -> None:
    counted = []

    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise KeyError("x")

    async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
        return

    async def unused(*_: object) -> Any:
        raise AssertionError

    for app in (broken, silent):
        guard = Guard(app, api_keys=DIGESTS, respond=unused, answered=lambda _, status: counted.append(status))
        try:
            asyncio.run(guard({"type": "http", "path": "/healthz", "headers": []}, unused, unused))
        except KeyError:
            assert app is broken
    assert counted == [500, 499]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_loopback_may_be_served_without_a_key(host: str) -> None:
    check_bind(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "gpu.lan", ""])
def test_any_other_address_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="API key"):
        check_bind(host, None)
    with pytest.raises(ConfigError, match="api_keys_file"):
        check_bind(host, frozenset())
    check_bind(host, DIGESTS)


@pytest.mark.parametrize(
    ("keys", "headers", "name"),
    [
        (DIGESTS, {"authorization": f"Bearer {KEY}"}, hashlib.sha256(KEY.encode()).hexdigest()[:12]),
        (DIGESTS, {"authorization": "bearer sk-edge-2"}, hashlib.sha256(b"sk-edge-2").hexdigest()[:12]),
        (None, {"host": "localhost"}, None),
        (DIGESTS, {}, None),
        (DIGESTS, {"authorization": "Bearer wrong"}, None),
    ],
)
def test_the_app_learns_whose_request_it_is_by_the_keys_digest(
    keys: Collection[str] | None, headers: dict[str, str], name: str | None
) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        scopes.append(scope)

    async def respond(error: ApiError, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError(str(error))

    async def nothing(*_: object) -> Message:
        return {}

    guard = Guard(app, api_keys=keys, respond=respond, answered=lambda *_: None)
    raw = [(key.encode(), value.encode()) for key, value in headers.items()]
    asyncio.run(guard({"type": "http", "path": "/healthz", "headers": raw}, nothing, nothing))  # type: ignore[arg-type]
    assert scopes[0].get(KEY_OF_SCOPE) == name
