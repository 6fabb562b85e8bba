"""The client of our own API: addresses, streams, and what is said when the other side is no coordinator."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from agent.errors import ConfigError
from edgectl.client import API_KEY_VARIABLE, Client, Delta, coordinator_url
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure


def client(handler: httpx.MockTransport) -> Client:
    return Client("http://coordinator", transport=handler)


def answering(status: int, text: str) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(status, text=text))


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"HOME": str(tmp_path)}
    assert coordinator_url("http://10.0.0.1:80/v1/", None, env) == "http://10.0.0.1:80"
    assert coordinator_url(None, None, env) == "http://127.0.0.1:8080"
    (tmp_path / "cluster.toml").write_text('[coordinator]\nhttp = "0.0.0.0:9000"')
    assert coordinator_url(None, None, env) == "http://127.0.0.1:9000"
    other = tmp_path / "other.toml"
    other.write_text('[coordinator]\nhttp = "[::1]:7"')
    assert coordinator_url(None, other, env) == "http://[::1]:7"
    with pytest.raises(ConfigError, match="--url"):
        coordinator_url("10.0.0.1:80", None, env)
    with pytest.raises(ConfigError, match="no such file"):
        coordinator_url(None, tmp_path / "absent.toml", env)


def test_a_stream_of_completions_and_of_a_chat() -> None:
    stream = (
        ': keep-alive\n\ndata: {"choices":[{"text":"a","token_ids":[1,2],"finish_reason":null}]}\n\n'
        'data: {"choices":[{"delta":{"content":"b"},"finish_reason":null}]}\n\n'
        'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
        'data: {"choices":[],"usage":{"total_tokens":3}}\n\ndata: [DONE]\n\n'
    )
    with client(answering(200, stream)) as asked:
        assert list(asked.stream("/v1/completions", {})) == [
            Delta("a", (1, 2)),
            Delta("b"),
            Delta("", (), "stop"),
            Delta("", usage={"total_tokens": 3}),
        ]


def test_an_error_inside_a_stream_has_its_exit_code() -> None:
    stream = 'data: {"error":{"message":"gone","type":"server_error","param":null,"code":"device_lost"}}\n\n'
    with client(answering(200, stream)) as asked, pytest.raises(CommandFailure, match="gone") as failed:
        list(asked.stream("/v1/completions", {}))
    assert failed.value.exit_code == ExitCode.SESSION_LOST


@pytest.mark.parametrize(
    ("status", "text", "exit_code"),
    [
        (503, '{"error":{"message":"no device","code":"no_agent"}}', ExitCode.UNAVAILABLE),
        (401, '{"error":{"message":"key","code":"invalid_api_key"}}', ExitCode.FAILURE),
        (502, "<html>bad gateway</html>", ExitCode.UNAVAILABLE),
        (404, '{"error":"another shape"}', ExitCode.UNAVAILABLE),
        (200, "<html>a router's login page</html>", ExitCode.SESSION_LOST),
    ],
)
def test_what_is_not_an_answer(status: int, text: str, exit_code: ExitCode) -> None:
    with client(answering(status, text)) as asked, pytest.raises(CommandFailure) as failed:
        asked.status()
    assert failed.value.exit_code == exit_code


@pytest.mark.parametrize(
    ("problem", "exit_code"),
    [
        (httpx.ConnectError("refused"), ExitCode.UNAVAILABLE),
        (httpx.ReadTimeout("slow"), ExitCode.UNAVAILABLE),
        (httpx.RemoteProtocolError("closed"), ExitCode.SESSION_LOST),
    ],
)
def test_connections_that_fail(problem: httpx.HTTPError, exit_code: ExitCode) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise problem

    with (
        client(httpx.MockTransport(fail)) as asked,
        pytest.raises(CommandFailure, match="http://coordinator") as failed,
    ):
        asked.model()
    assert failed.value.exit_code == exit_code


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    seen: list[str] = []

    def note(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization", ""))
        return httpx.Response(200, json={"data": [{"id": "m"}]})

    with client(httpx.MockTransport(note)) as asked:
        assert asked.model() == "m"
    assert seen == ["Bearer secret"]
