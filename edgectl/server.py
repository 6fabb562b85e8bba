"""The OpenAI-compatible HTTP server: routes to answers, answers to bytes.

Reading and checking is `openai_requests` and `openai_api`, running is `answer`, JSON is `openai_responses`; here is
only HTTP: bodies, server-sent events, keep-alives, clients that hang up. Shares the coordinator's asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Generator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.errors import ConfigError
from edgectl.answer import SESSIONS_AT_ONCE, Answer, Owner
from edgectl.answer_response import AnswerResponse, error_response, json_response
from edgectl.engine import Engine
from edgectl.http_guard import KEY_OF_SCOPE, Guard
from edgectl.metrics import CONTENT_TYPE, Metrics
from edgectl.openai_api import Ask, read_chat, read_completion
from edgectl.openai_errors import ApiError
from edgectl.openai_requests import ChatBody, CompletionBody, parse_body
from edgectl.openai_responses import Envelope, shape_of
from edgectl.tokenizer import Tokenizer

MAX_BODY_BYTES = 1 << 20
"""A full context of 131,072 tokens is about half a MiB of text."""

MAX_DRAINED_BYTES = 16 << 20
"""Of a body that is too large, this much is read and dropped, so that the client gets to read the refusal."""

BODY_PATIENCE_S = 30.0
"""A client that takes longer to send its body is not served."""

SHUTDOWN_PATIENCE_S = 3
"""How long answers under way may go on when the server stops."""

KEEP_ALIVE_S = 10.0
"""A stream is never silent for longer: proxies give up on idle connections after 30 to 60 s."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Time and randomness of the server; tests bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
    draw_seed: Callable[[], int] = lambda: secrets.randbits(63)
    keep_alive_s: float = KEEP_ALIVE_S
    body_patience_s: float = BODY_PATIENCE_S


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    api_keys: Collection[str] | None = None,
    clocks: Clocks | None = None,
    sessions_per_key: int = 0,
) -> FastAPI:
    """The app over one engine; `api_keys` are SHA-256 digests in hex, none means loopback names only.

    No request has more than `sessions_per_key` sessions open at a time, so that it is not refused on its own account;
    0 is no limit.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    metrics = Metrics(engine)
    routes = _Routes(
        engine, tokenizer, metrics, clocks or Clocks(), min(sessions_per_key or SESSIONS_AT_ONCE, SESSIONS_AT_ONCE)
    )
    served: dict[str, tuple[str, Callable[..., Awaitable[Response]]]] = {
        "/v1/models": ("GET", routes.models),
        "/v1/models/{model:path}": ("GET", routes.model),
        "/v1/completions": ("POST", routes.completions),
        "/v1/chat/completions": ("POST", routes.chat_completions),
        "/healthz": ("GET", routes.health),
        "/metrics": ("GET", routes.metrics),
        "/edge/v1/status": ("GET", routes.status),
    }
    for path, (method, handler) in served.items():
        app.add_api_route(path, handler, methods=[method])

    def answered(path: str, status: int) -> None:
        path = "/v1/models" if path.startswith("/v1/models/") else path
        metrics.request_answered(path if path in served else "other", status)

    app.add_middleware(Guard, api_keys=api_keys, respond=_respond, answered=answered)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)
    return app


class _Routes:
    """The handlers; each method is one path."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, metrics: Metrics, clocks: Clocks, at_once: int) -> None:
        self._at_once = at_once
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._clocks = clocks
        self._created = int(clocks.unix())

    async def models(self) -> Response:
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, model: str) -> Response:
        self._check_model(model)
        return json_response(self._model())

    async def completions(self, request: Request) -> Response:
        body = parse_body(await _read_body(request, self._clocks.body_patience_s), CompletionBody)
        self._check_model(body.model)
        context, seed = self._engine.context, self._clocks.draw_seed
        # Tokenizing a long prompt takes tens of milliseconds, in which the coordinator must hear its devices.
        ask = await asyncio.to_thread(read_completion, body, self._tokenizer, context, seed)
        return self._answer(ask, request)

    async def chat_completions(self, request: Request) -> Response:
        body = parse_body(await _read_body(request, self._clocks.body_patience_s), ChatBody)
        self._check_model(body.model)
        context, seed = self._engine.context, self._clocks.draw_seed
        ask = await asyncio.to_thread(read_chat, body, self._tokenizer, context, seed)
        return self._answer(ask, request)

    async def health(self) -> Response:
        health = self._engine.health()
        body = {
            "status": "ok" if health.ready else "unavailable",
            "devices_connected": health.devices_connected,
            "devices_expected": health.devices_expected,
            "detail": health.detail,
        }
        return json_response(body, 200 if health.ready else 503)

    async def metrics(self) -> Response:
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    async def status(self) -> Response:
        return json_response(self._engine.status())

    def _answer(self, ask: Ask, request: Request) -> Response:
        self._metrics.prompt_accepted(ask.prompt_tokens)
        prefix = "chatcmpl" if ask.chat else "cmpl"
        envelope = Envelope(f"{prefix}-{secrets.token_hex(12)}", int(self._clocks.unix()), self._engine.model)
        owner = Owner(request.scope.get(KEY_OF_SCOPE, ""), self._at_once)
        answer = Answer(self._engine, self._tokenizer, ask, self._metrics, self._clocks.monotonic, owner=owner)
        return AnswerResponse(ask, answer, shape_of(ask, envelope, self._tokenizer), self._clocks.keep_alive_s)

    def _check_model(self, model: str) -> None:
        if model != self._engine.model:
            message = f"the model {model[:200]!r} does not exist here; this server has {self._engine.model!r}"
            raise ApiError("model_not_found", message, "model")

    def _model(self) -> dict[str, object]:
        return {"id": self._engine.model, "object": "model", "created": self._created, "owned_by": "edgectl"}


async def _read_body(request: Request, patience_s: float) -> bytes:
    """The whole body. Raises ApiError when it is larger than MAX_BODY_BYTES or does not arrive in time."""
    try:
        return await asyncio.wait_for(_collect_body(request), patience_s)
    except asyncio.TimeoutError as problem:
        raise ApiError("request_timeout", f"the body did not arrive within {patience_s:g} s") from problem


async def _collect_body(request: Request) -> bytes:
    body = bytearray()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > MAX_DRAINED_BYTES:
            break
        if received <= MAX_BODY_BYTES:
            body += chunk
    if received > MAX_BODY_BYTES:
        raise ApiError("body_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _respond(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await error_response(error)(scope, receive, send)


async def _on_api_error(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError)
    return error_response(problem)


async def _on_http_exception(request: Request, problem: Exception) -> Response:
    """Starlette's own refusals: no such path, wrong method."""
    assert isinstance(problem, HTTPException)
    if problem.status_code == 405:
        error = ApiError("method_not_allowed", f"{request.method} is not allowed here")
    elif problem.status_code == 404:
        error = ApiError("not_found", "no such path; the API is below /v1")
    else:
        error = ApiError("internal_error")
    response = error_response(error)
    response.headers.update(problem.headers or {})
    return response


async def _on_bug(_: Request, problem: Exception) -> Response:
    """The framework logs the traceback; the client learns only that something failed."""
    return error_response(ApiError("internal_error"))


async def serve_http(
    app: ASGIApp,
    host: str,
    port: int,
    on_ready: Callable[[str, int], None],
    *,
    patience_s: int = SHUTDOWN_PATIENCE_S,
) -> None:
    """Serves until cancelled, then lets answers under way go on for `patience_s`.

    `on_ready` gets host and port once connections are accepted (port 0 asks the system for a free one). Signals are
    the caller's. Raises ConfigError when the address cannot be listened on. `check_bind` is the caller's duty.
    """
    with _listen(host, port) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            http="h11",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=patience_s,
        )
        server = _Server(config, lambda: on_ready(host, listener.getsockname()[1]))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as problem:
        raise ConfigError(f"cannot serve HTTP on {host} port {port}: {problem.strerror or problem}") from problem
    return listener


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, telling when it accepts connections."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()
