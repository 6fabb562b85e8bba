"""Offers the sessions of a load to one server, open loop or closed, and gathers how they went.

A session of an open loop is due at its time whatever happened to the others; where the generator itself is late, or
has no connection left, the latency still counts from when it was due.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edgectl.load.connection import Server, Try
from edgectl.load.generator import Load, Order, arrivals_s, order_of
from edgectl.load.summary import Outcome

PAUSE_S = 1.0
"""A client of a closed loop waits so long after a failure: a server that is gone is not asked a thousand times."""
DRAIN_S = 300.0
"""After the last session was offered, those under way have this long."""
MOST_OPEN = 1000
"""Connections at a time; sessions of an open loop that find no place wait, and their latency counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """How a load is put to a server; it ends after `sessions` or `seconds`, whichever is first."""

    load: Load
    model: str
    sessions: int | None = None
    seconds: float | None = None
    api_keys: tuple[str, ...] = ()
    """One per key of the load; empty for a server that asks for none."""
    retries: int = 0
    """How often a session that was refused comes back when Retry-After says."""
    most_open: int = MOST_OPEN
    drain_s: float = DRAIN_S


async def offer_load(
    server: Server,
    offer: Offer,
    progress: Callable[[int, int], None] = lambda done, offered: None,
    stop: asyncio.Event | None = None,
) -> list[Outcome]:
    """Offers all of it and returns how every session went, by number. A session that fails raises nothing.

    `progress` hears how many sessions are over and how many were offered. When `stop` is set, sessions under way are
    left and not returned.
    """
    run = _Run(server, offer, progress)
    offering = asyncio.create_task(run.open_loop() if offer.load.is_open else run.closed_loop())
    stopping = asyncio.create_task((stop or asyncio.Event()).wait())
    try:
        await asyncio.wait({offering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if offering.done():
            offering.result()
    finally:
        offering.cancel()
        stopping.cancel()
        await run.close()
        await asyncio.gather(offering, stopping, return_exceptions=True)
    over = [outcome for outcome in run.outcomes if not math.isnan(outcome.ended_s)]
    return sorted(over, key=lambda outcome: outcome.number)


@dataclass(slots=True)
class _Run:
    server: Server
    offer: Offer
    progress: Callable[[int, int], None]
    outcomes: list[Outcome] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    over: int = 0
    clock: Callable[[], float] = field(init=False)
    begin_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.begin_s = self.clock()

    async def open_loop(self) -> None:
        places = asyncio.Semaphore(self.offer.most_open)
        for number, arrival_s in enumerate(arrivals_s(self.offer.load)):
            if self._enough(number, arrival_s):
                break
            order = order_of(self.offer.load, number)
            await asyncio.sleep(self.begin_s + arrival_s - self.clock())
            outcome = self._due(order, self.begin_s + arrival_s)
            self.tasks.append(asyncio.create_task(self._placed(order, outcome, places)))
        await self._drain()

    async def closed_loop(self) -> None:
        numbers = iter(range(self.offer.sessions if self.offer.sessions is not None else 1 << 62))
        self.tasks = [asyncio.create_task(self._client(numbers)) for _ in range(self.offer.load.concurrency or 1)]
        if self.offer.seconds is None:
            await asyncio.gather(*self.tasks)
            return
        await asyncio.wait(self.tasks, timeout=self.offer.seconds)
        await self._drain()

    async def close(self) -> None:
        """Leaves the sessions that are still under way."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _client(self, numbers: Iterator[int]) -> None:
        """Asks for one session after the other."""
        for number in numbers:
            if self._enough(number, self.clock() - self.begin_s):
                return
            order = order_of(self.offer.load, number)
            outcome = self._due(order, self.clock())
            pause_s = await self._session(order, outcome)
            if outcome.end in ("refused", "failed"):
                await asyncio.sleep(pause_s or PAUSE_S)

    def _enough(self, number: int, elapsed_s: float) -> bool:
        offer = self.offer
        return (offer.sessions is not None and number >= offer.sessions) or (
            offer.seconds is not None and elapsed_s >= offer.seconds
        )

    def _due(self, order: Order, due_s: float) -> Outcome:
        outcome = Outcome(order.number, order.key, len(order.prompt), order.max_tokens, due_s)
        self.outcomes.append(outcome)
        return outcome

    async def _drain(self) -> None:
        """Waits for the sessions under way, not for ever."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=self.offer.drain_s)
        await self.close()
        for task in self.tasks:
            if not task.cancelled():
                task.result()
        for outcome in self.outcomes:
            if math.isnan(outcome.ended_s):
                outcome.ended_s, outcome.problem = self.clock(), "not over in time"
            if math.isnan(outcome.sent_s):
                outcome.sent_s = outcome.ended_s

    async def _placed(self, order: Order, outcome: Outcome, places: asyncio.Semaphore) -> None:
        async with places:
            await self._session(order, outcome)

    async def _session(self, order: Order, outcome: Outcome) -> float | None:
        """Returns when to come back, where the server refused it and said so."""
        outcome.sent_s = self.clock()
        keys = self.offer.api_keys
        request = self.server.request(order, self.offer.model, keys[order.key % len(keys)] if keys else None)
        while True:
            outcome.tries += 1
            retry_after_s = await Try(order, outcome).run(self.server, request)
            if retry_after_s is None or outcome.tries > self.offer.retries:
                break
            await asyncio.sleep(retry_after_s)
        self.over += 1
        self.progress(self.over, len(self.outcomes))
        return retry_after_s
