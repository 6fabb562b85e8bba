"""Looking at a server: ours, somebody else's, and none."""

from __future__ import annotations

import httpx
import pytest

from edgectl.load.target import MAX_CONTEXT, look
from edgectl.output import CommandFailure

MODELS = '{"data":[{"id":"m"}]}'
METRICS = (
    "# TYPE edge_decode_compute_seconds histogram\n"
    'edge_decode_compute_seconds_bucket{le="+Inf",device="a"} 3\n'
    'edge_decode_compute_seconds_sum{device="a"} 1.5\n'
    'edge_decode_compute_seconds_count{device="a"} 3\n'
)


def server(**pages: str | int) -> httpx.MockTransport:
    """Pages by the last word of their path; a number is a status."""

    def answer(request: httpx.Request) -> httpx.Response:
        page = pages.get(request.url.path.rsplit("/", 1)[-1], 404)
        return httpx.Response(page) if isinstance(page, int) else httpx.Response(200, text=page)

    return httpx.MockTransport(answer)


def test_a_coordinator() -> None:
    seen = look("http://a", None, server(models=MODELS, status='{"plan":{"context":77}}', metrics=METRICS))
    assert (seen.model, seen.context, seen.unknown) == ("m", 77, "")
    assert seen.totals["a"].time("decode_compute_seconds").mean_ms == 500


def test_the_key_is_sent() -> None:
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers.get("authorization"))
        return httpx.Response(200, text=MODELS)

    look("http://a", "k", httpx.MockTransport(answer))
    assert set(keys) == {"Bearer k"}


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({}, "no coordinator"),
        ({"status": "{}"}, "no coordinator"),
        ({"status": "[1]"}, "no coordinator"),
        ({"status": "<html>"}, "cannot be read"),
        ({"status": '{"plan":null}', "metrics": "{{{"}, "cannot be read"),
        ({"status": '{"plan":{"context":"x"}}', "metrics": ""}, "names no device"),
        ({"status": '{"plan":null}'}, "names no device"),
    ],
)
def test_what_a_server_does_not_say(pages: dict[str, str], words: str) -> None:
    seen = look("http://a", None, server(models=MODELS, **pages))
    assert words in seen.unknown
    assert (seen.model, seen.context) == ("m", MAX_CONTEXT)


@pytest.mark.parametrize("models", [404, 401, "<html>", '{"data":[]}', "[]", '{"data":[{}]}'])
def test_a_server_that_names_no_model(models: str | int) -> None:
    with pytest.raises(CommandFailure, match="/v1/models"):
        look("http://a", None, server(models=models))


def test_nobody() -> None:
    with pytest.raises(CommandFailure, match="nothing answers"):
        look("http://127.0.0.1:1", None)
