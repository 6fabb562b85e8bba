"""Who may talk to the HTTP server, decided before anything else happens. Pure ASGI, no framework.

Without API keys only this machine may ask, by a loopback name: a web page that has its own name resolve to 127.0.0.1
(DNS rebinding) sends that name as Host, and one that posts here directly sends its Origin; both are refused. With API
keys every path but /healthz needs one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from agent.errors import ConfigError
from edgectl.config import is_loopback
from edgectl.openai_errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Respond = Callable[[ApiError, Scope, Receive, Send], Awaitable[None]]
"""Sends an error as the whole response."""

OPEN_PATHS = frozenset({"/healthz"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

KEY_OF_SCOPE = "edgectl.key"
"""Where the request's scope says whose it is: the beginning of its key's digest; not there without keys."""
KEY_NAME_CHARACTERS = 12

CLIENT_GONE = 499
"""What a request is counted under when the client hung up before the response began (nginx's number)."""


def check_bind(host: str, api_keys: Collection[str] | None) -> None:
    """Raises ConfigError for an address that others can reach while no API key protects it."""
    if not api_keys and not is_loopback(host):
        raise ConfigError(
            f"refusing to serve on {host} without an API key: anybody who reaches it could use every device; "
            "set coordinator.api_keys_file, or serve on 127.0.0.1"
        )


class Guard:
    """Checks host, origin and key of each HTTP request, and counts how it was answered."""

    def __init__(
        self,
        app: App,
        *,
        api_keys: Collection[str] | None,
        respond: Respond,
        answered: Callable[[str, int], None],
    ) -> None:
        """`api_keys` are SHA-256 digests in hex; `answered` gets the path and status of every response."""
        self._app = app
        self._digests = tuple(bytes.fromhex(digest) for digest in api_keys or ())
        self._respond = respond
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, counted)
            else:
                await self._respond(refusal, scope, receive, counted)
        except Exception:
            status = 500 if status == CLIENT_GONE else status
            raise
        finally:
            self._answered(scope["path"], status)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not self._digests:
            return _foreign(headers)
        known = self._known(headers.get(b"authorization", ""))
        if known is not None:
            scope[KEY_OF_SCOPE] = known.hex()[:KEY_NAME_CHARACTERS]
        if scope["path"] in OPEN_PATHS or known is not None:
            return None
        return ApiError("invalid_api_key", "the API key is missing or wrong: send `Authorization: Bearer KEY`")

    def _known(self, authorization: str) -> bytes | None:
        """The digest of the key, where it is one of ours."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            return None
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # All are compared, each in constant time, so that the time says nothing about which one was close.
        return digest if sum(hmac.compare_digest(digest, known) for known in self._digests) > 0 else None


def _foreign(headers: dict[bytes, str]) -> ApiError | None:
    """The refusal of a request that did not come to, or from, a loopback name."""
    host = headers.get(b"host", "")
    if _hostname(f"//{host}") not in LOOPBACK_NAMES:
        return ApiError(
            "host_not_allowed",
            "without API keys this server answers only to localhost, 127.0.0.1 and [::1]; configure API keys to use "
            "another name",
        )
    origin = headers.get(b"origin")
    if origin is not None and _hostname(origin) not in LOOPBACK_NAMES:
        return ApiError("host_not_allowed", "without API keys this server does not answer to web pages of other sites")
    return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
