"""The load generator against real sockets: what its clients see is what a queue of known service times makes of it.

The oracle is Lindley's recursion over the moments the sessions were due: wait[n+1] = max(0, wait[n] + service - gap).
No client may see less than that; how much more depends on what else this machine does, so bounds above are wide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import pytest

from edgectl.load.client import Offer, offer_load
from edgectl.load.connection import Server
from edgectl.load.generator import Lengths, Load, arrivals_s, order_of
from edgectl.load.summary import Objectives, Outcome, summary
from tests.fakes.fake_engine import FakeEngine, Script
from tests.fakes.http_server import serving
from tests.fakes.queue_server import QueueServer, queueing, refusal

EARLY_S = 0.002
"""Timers of asyncio may fire this much early."""


def offer(sessions: int | None = 10, retries: int = 0, most_open: int = 1000, **fields: Any) -> Offer:
    keys = fields.pop("api_keys", ())
    seconds = fields.pop("seconds", None)
    given = {"prompt": Lengths.parse("8"), "output": Lengths.parse("4"), "context": 256, "keys": max(1, len(keys))}
    load = Load(**{**given, **fields})
    return Offer(
        load=load, model="m", sessions=sessions, seconds=seconds, api_keys=keys, retries=retries, most_open=most_open
    )


def offered(server: QueueServer, what: Offer) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with queueing(server):
            return await offer_load(Server.of_url(server.url), what)

    return asyncio.run(run())


def lindley_s(dues_s: list[float], service_s: Callable[[int], float]) -> list[float]:
    """Time in the system of each session of a queue with one server."""
    waits = [0.0]
    for number, (earlier, later) in enumerate(pairwise(dues_s)):
        waits.append(max(0.0, waits[-1] + service_s(number) - (later - earlier)))
    return [wait + service_s(number) for number, wait in enumerate(waits)]


def ends_s(outcomes: list[Outcome], service_s: Callable[[int], float]) -> tuple[list[float], list[float]]:
    """When sessions ended, and when they could have at the earliest, both in order.

    In order, as two that come at nearly one time may overtake each other on their way to the server; the moments at
    which one server that never rests is through with its n-th session do not depend on whose turn it was.
    """
    dues = [outcome.due_s for outcome in outcomes]
    oracle = [due_s + in_system_s for due_s, in_system_s in zip(dues, lindley_s(dues, service_s), strict=True)]
    return sorted(outcome.ended_s for outcome in outcomes), sorted(oracle)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def test_lindleys_mean_is_the_formula_of_an_m_d_1_queue() -> None:
    """Pollaczek and Khinchine: mean wait rho D / (2 (1 - rho)). Says that the oracle and the arrivals are right."""
    load = offer(rate_per_s=0.7).load
    dues = list(islice(arrivals_s(load), 200_000))
    systems = lindley_s(dues, lambda _: 1.0)
    assert sum(systems) / len(systems) == pytest.approx(1 + 0.7 / (2 * 0.3), rel=0.03)


def test_an_open_loop_sees_the_waits_of_its_queue() -> None:
    service_s = 0.02
    server = QueueServer(lambda _: service_s)
    outcomes = offered(server, offer(80, rate_per_s=35.0, output=Lengths.parse("2")))
    assert all(outcome.end == "completed" for outcome in outcomes)
    assert all(ours >= oracle - EARLY_S for ours, oracle in zip(*ends_s(outcomes, lambda _: service_s), strict=True))
    # What the client adds to what the server did is little.
    added = [
        ours - served.over_s for ours, served in zip(sorted(o.ended_s for o in outcomes), server.served, strict=True)
    ]
    assert median(added) < 0.1
    # Arrivals are the load's, wherever the clock stood at its begin.
    begin_s = outcomes[0].due_s
    dues = [outcome.due_s - begin_s for outcome in outcomes]
    assert dues == pytest.approx(list(islice(arrivals_s(offer(rate_per_s=35.0).load), 80)), abs=1e-6)


@pytest.mark.parametrize("most_open", [1000, 1])
def test_a_stall_is_seen_by_everyone_who_came_meanwhile(most_open: int) -> None:
    """Coordinated omission: a generator that waits for the stalled answer would report one slow session.

    Also where the generator itself may not open more connections.
    """

    def service_s(number: int) -> float:
        return 0.5 if number == 5 else 0.001

    server = QueueServer(service_s)
    what = offer(60, rate_per_s=60.0, arrivals="constant", output=Lengths.parse("1"), most_open=most_open)
    outcomes = offered(server, what)
    seen, expected = ends_s(outcomes, service_s)
    assert all(ours >= oracle - EARLY_S for ours, oracle in zip(seen, expected, strict=True))
    dues = [outcome.due_s for outcome in outcomes]
    slow = sum(in_system > 0.1 for in_system in lindley_s(dues, service_s))
    assert slow > 20
    # One or two may have overtaken one another on their way.
    assert sum((outcome.time_to_first_token_ms or 0.0) > 100 for outcome in outcomes) >= slow - 2
    found: dict[str, Any] = summary(outcomes, 0, Objectives(ttft_ms=100.0))
    assert found["goodput"]["share"] <= 1 - (slow - 2) / 60 + 1e-3


def test_a_closed_loop_has_so_many_under_way_and_takes_the_time_of_its_queue() -> None:
    server = QueueServer(lambda _: 0.01)
    outcomes = offered(server, offer(24, concurrency=3, output=Lengths.parse("uniform:1:3")))
    found: dict[str, Any] = summary(outcomes, 0, Objectives())
    assert found["most_open"] == 3
    assert found["seconds"] >= 24 * 0.01 - EARLY_S
    # Each waits for the two before it.
    assert found["end_to_end_ms"]["p50"] >= 3 * 10 - 1e3 * EARLY_S
    assert found["tokens"] == sum(outcome.max_tokens for outcome in outcomes)
    assert {outcome.max_tokens for outcome in outcomes} == {1, 2, 3}


def test_the_bodies_are_the_sessions_of_the_load_and_keys_take_turns() -> None:
    server = QueueServer(lambda _: 0.0)
    what = offer(6, concurrency=1, api_keys=("red", "blue"), prompt=Lengths.parse("uniform:1:9"))
    outcomes = offered(server, what)
    for number, served in enumerate(server.served):
        order = order_of(what.load, number)
        assert served.body["prompt"] == list(order.prompt)
        assert (served.body["max_tokens"], served.body["seed"]) == (order.max_tokens, order.seed)
        assert served.authorization == f"Bearer {('red', 'blue')[number % 2]}"
    assert [outcome.key for outcome in outcomes] == [0, 1] * 3


def test_seconds_end_either_loop() -> None:
    for fields in ({"rate_per_s": 100.0}, {"concurrency": 2}):
        server = QueueServer(lambda _: 0.01)
        outcomes = offered(server, offer(None, seconds=0.3, **fields))
        assert len(outcomes) >= 2
        assert {outcome.end for outcome in outcomes} == {"completed"}
        assert max(outcome.due_s for outcome in outcomes) - outcomes[0].due_s < 0.3 + EARLY_S


def test_clients_that_hang_up_do_so_after_the_tokens_that_were_drawn() -> None:
    server = QueueServer(lambda _: 0.05)
    what = offer(6, concurrency=6, cancel_share=1.0, output=Lengths.parse("20"))
    outcomes = offered(server, what)
    for outcome in outcomes:
        assert outcome.end == "cancelled"
        order = order_of(what.load, outcome.number)
        assert order.hang_up_after is not None
        # Several chunks may be there when the client looks; it never leaves before its number.
        assert outcome.tokens >= order.hang_up_after


def test_refusals_are_counted_with_their_codes() -> None:
    refusals = [refusal(429, "queue_full", "1"), refusal(503, "not_ready"), refusal(500, "internal_error"), b""]
    server = QueueServer(lambda _: 0.0, lambda number: refusals[number])
    outcomes = offered(server, offer(4, rate_per_s=200.0, arrivals="constant"))
    ends = sorted((outcome.end, outcome.problem) for outcome in outcomes)
    assert ends == [
        ("completed", ""),
        ("failed", "HTTP 500 internal_error"),
        ("refused", "HTTP 429 queue_full"),
        ("refused", "HTTP 503 not_ready"),
    ]


def test_retry_after_is_honoured_and_the_latency_counts_from_the_first_time() -> None:
    server = QueueServer(lambda _: 0.0, lambda number: refusal(429, "queue_full", "1") if number == 0 else b"")
    (outcome,) = offered(server, offer(1, retries=2, rate_per_s=1.0))
    assert (outcome.end, outcome.tries, outcome.problem) == ("completed", 2, "")
    assert outcome.time_to_first_token_ms is not None
    assert outcome.time_to_first_token_ms >= 1e3 * (1 - EARLY_S)


def test_a_session_that_is_never_over_is_cut_off() -> None:
    async def run() -> list[Outcome]:
        async with queueing(QueueServer(lambda _: 3600.0)) as server:
            what = Offer(load=offer(rate_per_s=9.0).load, model="m", sessions=2, drain_s=0.1)
            return await offer_load(Server.of_url(server.url), what)

    assert [(outcome.end, outcome.problem) for outcome in asyncio.run(run())] == [("failed", "not over in time")] * 2


@pytest.mark.parametrize("loop", [{"rate_per_s": 100.0}, {"concurrency": 2}])
def test_stopping_leaves_what_is_under_way_and_returns_the_rest(loop: dict[str, Any]) -> None:
    async def run() -> tuple[list[Outcome], int]:
        stop = asyncio.Event()

        def progress(done: int, offered: int) -> None:
            if done == 5:
                stop.set()

        async with queueing(QueueServer(lambda number: 0.005 if number < 5 else 3600.0)) as server:
            before = asyncio.all_tasks()
            outcomes = await offer_load(Server.of_url(server.url), offer(None, **loop), progress, stop)
            ours = {task for task in asyncio.all_tasks() - before if "load_" in str(task.get_coro())}
            return outcomes, len(ours)

    outcomes, left = asyncio.run(run())
    assert [(outcome.number, outcome.end) for outcome in outcomes] == [(number, "completed") for number in range(5)]
    assert left == 0


def test_our_own_server_understands_it() -> None:
    engine = FakeEngine(lambda opening: Script(tokens=[300 + at for at in range(opening.max_tokens)]))
    what = Offer(
        load=Load(prompt=Lengths.parse("8"), output=Lengths.parse("5"), context=256, concurrency=2),
        model=engine.model,
        sessions=6,
    )

    async def run() -> list[Outcome]:
        async with serving(engine) as served:
            return await offer_load(Server.of_url(served.url), what)

    outcomes = asyncio.run(run())
    assert [(outcome.end, outcome.problem, outcome.tokens) for outcome in outcomes] == [("completed", "", 5)] * 6
    assert {opening.prompt for opening in engine.openings} == {order_of(what.load, n).prompt for n in range(6)}
    assert all(opening.stop_ids == () for opening in engine.openings)
