"""One connection of a load: answers, refusals, and whatever else may come back from an address."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

import pytest

from agent.errors import ConfigError
from edgectl.load.connection import MOST_RETRY_AFTER_S, Server, Try
from edgectl.load.generator import Order
from edgectl.load.summary import Outcome
from tests.fakes.queue_server import HEAD, QueueServer, chunk, queueing, refusal

ORDER = Order(number=0, key=0, prompt=(70, 71, 72), max_tokens=4, seed=5, hang_up_after=None)


def asked(url: str, outcome: Outcome, order: Order = ORDER) -> float | None:
    """One try at an address."""

    async def run() -> float | None:
        server = Server.of_url(url)
        return await Try(order, outcome).run(server, server.request(order, "m", "key"))

    return asyncio.run(run())


def tried(server: QueueServer, order: Order = ORDER) -> tuple[Outcome, float | None]:
    """One try at a server that lives as long as it."""
    outcome = Outcome(0, 0, 3, 4, due_s=0.0)

    async def run() -> float | None:
        async with queueing(server):
            return await asyncio.to_thread(asked, server.url, outcome, order)

    return outcome, asyncio.run(run())


def test_an_answer() -> None:
    server = QueueServer(lambda _: 0.02)
    outcome, retry_after_s = tried(server)
    assert (outcome.end, outcome.problem, outcome.tokens, retry_after_s) == ("completed", "", 4, None)
    assert len(outcome.arrivals_s) == 4
    assert sorted(outcome.arrivals_s) == outcome.arrivals_s
    assert outcome.arrivals_s[-1] <= outcome.ended_s
    (served,) = server.served
    assert served.authorization == "Bearer key"
    assert served.body["prompt"] == [70, 71, 72]
    assert served.body["ignore_eos"] is served.body["stream"] is True


def test_a_server_without_our_extensions() -> None:
    outcome, _ = tried(QueueServer(lambda _: 0.0, plain=True))
    assert (outcome.end, outcome.tokens) == ("completed", 4)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("3", 3.0), ("", 1.0), ("0", 1.0), ("99999", MOST_RETRY_AFTER_S), ("Fri, 31 Dec 1999 23:59:59 GMT", 1.0)],
)
def test_a_refusal_says_when_to_come_back(retry_after: str, seconds: float, status: int) -> None:
    outcome, found = tried(QueueServer(lambda _: 0.0, lambda _: refusal(status, "queue_full", retry_after)))
    assert (outcome.end, outcome.problem, found) == ("refused", f"HTTP {status} queue_full", seconds)


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (b"SSH-2.0-x\r\n\r\n", "no HTTP response"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n", "no finish reason"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: [1]\n\n", "no answer of a completion"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: {}\n\n", "closed before"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error":{"code":"device_lost"}}\n\n', "broke off: device_lost"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error":"gone"}\n\n', "broke off: error"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n[]", "HTTP 404"),
    ],
)
def test_what_is_no_answer_is_a_failure(response: bytes, problem: str) -> None:
    server = QueueServer(lambda _: 0.0, lambda number: response if number == 0 else b"")
    outcome, retry_after_s = tried(server)
    assert (outcome.end, retry_after_s) == ("failed", None)
    assert problem in outcome.problem


def test_nobody_listens() -> None:
    outcome = Outcome(0, 0, 3, 4, due_s=0.0)
    assert asked("http://127.0.0.1:1", outcome) is None
    assert outcome.end == "failed"
    assert "cannot connect" in outcome.problem


def test_a_client_hangs_up_when_it_was_told_to() -> None:
    leaving = Order(0, 0, (70,), 40, 5, hang_up_after=3)
    outcome, _ = tried(QueueServer(lambda _: 4.0), leaving)
    assert (outcome.end, outcome.problem) == ("cancelled", "")
    assert 3 <= outcome.tokens < 40


@pytest.mark.parametrize(
    ("comments", "silence_s", "longest_s", "problem"),
    [(False, 0.2, 60.0, "silent for 0.2 s"), (True, 60.0, 0.3, "not over after 0.3 s")],
    ids=["silent", "chatting"],
)
def test_no_server_is_waited_for_without_an_end(
    comments: bool, silence_s: float, longest_s: float, problem: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        with suppress(ConnectionError, asyncio.CancelledError):
            while not writer.is_closing():
                writer.write(chunk(b": keep-alive\n\n") if comments else b"")
                await asyncio.sleep(0.02)
        writer.close()

    async def run() -> Outcome:
        outcome = Outcome(0, 0, 3, 4, due_s=0.0)
        listener = await asyncio.start_server(answer, "127.0.0.1", 0)
        server = Server.of_url(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        trying = Try(ORDER, outcome, silence_s=silence_s, longest_s=longest_s)
        await trying.run(server, server.request(ORDER, "m"))
        listener.close()
        return outcome

    outcome = asyncio.run(run())
    assert (outcome.end, outcome.problem) == ("failed", problem)


def test_cancelled_while_it_connects_or_waits_it_leaves_no_word() -> None:
    async def run(turns: int) -> Outcome:
        outcome = Outcome(0, 0, 3, 4, due_s=0.0)
        async with queueing(QueueServer(lambda _: 3600.0)) as server:
            target = Server.of_url(server.url)
            trying = asyncio.create_task(Try(ORDER, outcome).run(target, target.request(ORDER, "m")))
            for _ in range(turns):
                await asyncio.sleep(0)
            trying.cancel()
            with suppress(asyncio.CancelledError):
                await trying
            for _ in range(10):
                await asyncio.sleep(0)
        return outcome

    for turns in range(12):
        outcome = asyncio.run(run(turns))
        assert math.isnan(outcome.ended_s)
        assert outcome.problem == ""


def test_addresses() -> None:
    server = Server.of_url("http://[::1]:80/v1/")
    assert (server.host, server.port, server.path, server.tls) == ("::1", 80, "/v1/completions", None)
    request = server.request(ORDER, "m")
    assert b"Host: [::1]:80\r\n" in request
    assert Server.of_url("https://a/edge").port == 443
    assert Server.of_url("https://a/edge").path == "/edge/v1/completions"
    for bad in ("a:80", "ftp://a", "http://", "http://a:b"):
        with pytest.raises(ConfigError):
            Server.of_url(bad)
