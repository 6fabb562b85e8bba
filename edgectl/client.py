"""A client of our own HTTP API, for `generate` and `status`: what any OpenAI client does, and the status beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from agent.errors import ConfigError
from edgectl.config import CoordinatorConfig, cluster_file_places, find_cluster_file, load_config, parse_http
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure

API_KEY_VARIABLE = "EDGE_API_KEY"
CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 60.0
"""The server sends a comment every 10 s while nothing else happens; six missed ones mean that it is gone."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delta:
    """What a chunk of a stream adds to the one choice that `generate` asks for."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    usage: Json | None = None


def coordinator_url(url: str | None, cluster: Path | None, env: Mapping[str, str] = os.environ) -> str:
    """The address given, else that of the cluster.toml that is found, else the default one. Raises ConfigError."""
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url}: expected http://host:port")
        return url.rstrip("/").removesuffix("/v1")
    if cluster is None and not any(place.is_file() for place in cluster_file_places(env)):
        return parse_http(CoordinatorConfig().http).url
    return parse_http(load_config(find_cluster_file(cluster, env), env).coordinator.http).url


class Client:
    """Asks one coordinator, inside a `with`; every method raises CommandFailure."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        key = os.environ.get(API_KEY_VARIABLE)
        self._url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            trust_env=False,  # A proxy for the outside world has no business between us and the coordinator.
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        # Closes the connection: a stream that was not read to its end is cancelled there.
        self._http.close()

    def status(self) -> Json:
        """The object of GET /edge/v1/status."""
        return self._get("/edge/v1/status")

    def model(self) -> str:
        """Name of the one model that is served."""
        return str(self._get("/v1/models")["data"][0]["id"])

    def stream(self, path: str, body: Json) -> Iterator[Delta]:
        """Asks for a stream and yields it; whoever stops reading and closes the iterator cancels the session."""
        with self._failures(), self._http.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                response.read()
                raise _refusal(response)
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data in (line, "[DONE]"):
                    continue
                yield _delta(json.loads(data))

    def _get(self, path: str) -> Json:
        with self._failures():
            response = self._http.get(path)
            if response.status_code != 200:
                raise _refusal(response)
            answer: Json = response.json()
            return answer

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as problem:
            raise CommandFailure(
                ExitCode.UNAVAILABLE,
                f"nothing answers at {self._url}: {problem}",
                "start it with `edgectl serve`, or name another with --url or --cluster",
            ) from problem
        except httpx.TimeoutException as problem:
            raise CommandFailure(ExitCode.UNAVAILABLE, f"{self._url} did not answer in time") from problem
        except (httpx.HTTPError, ValueError) as problem:
            # ValueError: JSON that is none, from something that is no coordinator.
            raise CommandFailure(ExitCode.SESSION_LOST, f"{self._url}: the answer broke off: {problem}") from problem


def _delta(chunk: Json) -> Delta:
    """Raises CommandFailure for an error in the middle of a stream."""
    if "error" in chunk:
        raise _failure(chunk)
    if not chunk.get("choices"):
        return Delta("", usage=chunk.get("usage"))
    choice = chunk["choices"][0]
    text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return Delta(text or "", tuple(choice.get("token_ids") or ()), choice.get("finish_reason"), chunk.get("usage"))


def _refusal(response: httpx.Response) -> CommandFailure:
    try:
        return _failure(response.json())
    except (ValueError, KeyError, TypeError):
        return CommandFailure(ExitCode.UNAVAILABLE, f"{response.url} answered HTTP {response.status_code}")


def _failure(body: Json) -> CommandFailure:
    """OpenAI's error object with the exit code and hint of our table."""
    error = body["error"]
    return CommandFailure.of(str(error["code"]), str(error["message"]))
