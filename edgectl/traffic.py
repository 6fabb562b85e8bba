"""What the coordinator learns from the sessions it serves, and decides by it: routes to take, times to wait. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from edgectl.pace import Pace, TokenRate, Turnover, completion_s
from edgectl.routes import Seat
from planner.types import Plan

MIN_RETRY_S, MAX_RETRY_S = 1.0, 120.0
"""Bounds of Retry-After: whole seconds, and no longer than what is known of the load stays true."""


class Traffic:
    """Observations since the plan was made."""

    def __init__(self) -> None:
        self.paces: dict[int, Pace] = {}
        self.rate = TokenRate()
        self._turnover = Turnover()
        self._sessions: Counter[int] = Counter()
        """By route."""

    def begin(self, plan: Plan) -> None:
        """Another plan runs: what was known of routes is not known of these."""
        predicted_ms = plan.predicted.get("ms_per_token")
        predicted_s = predicted_ms / 1e3 if predicted_ms else None
        self.paces = {number: Pace(predicted_s) for number in range(len(plan.routes))}

    def sessions_on(self, route: int) -> int:
        return self._sessions[route]

    def choose(self, free: Sequence[Seat], used: Mapping[int, int], prompt: int, tokens: int) -> Seat:
        """Of micro-batches with a free row the one in which a session is expected to be done first.

        Of one route's micro-batches it is the one with the smallest part of its rows in use, so that all have some.
        """
        expected = completion_s(
            {seat.route: self.paces.get(seat.route) or Pace() for seat in free}, self._sessions, prompt, tokens
        )
        return min(
            free,
            key=lambda seat: (expected[seat.route], used.get(seat.micro_batch, 0) / seat.rows, seat.micro_batch),
        )

    def seated(self, seat: Seat, now: float) -> None:
        self._sessions[seat.route] += 1
        self.rate.busy(now)

    def freed(self, seat: Seat, held_s: float | None, now: float) -> None:
        """A row came free; `held_s` where its session came to an end of its own."""
        self._sessions[seat.route] -= 1
        if held_s is not None:
            self._turnover.row_freed(held_s)
        if not any(self._sessions.values()):
            self.rate.idle(now)

    def token(self, seat: Seat, now: float, since_s: float | None) -> None:
        """`since_s` after the session's token before; None where that says nothing about the route."""
        self.rate.token(now)
        if since_s is not None and seat.route in self.paces:
            self.paces[seat.route].token(self._sessions[seat.route], since_s)

    def first_token(self, seat: Seat, now: float, prompt: int, since_s: float) -> None:
        """`since_s` after the session got its row."""
        self.rate.token(now)
        if seat.route in self.paces:
            self.paces[seat.route].first_token(prompt, since_s)

    def wait_s(self, turns: int, rows: int) -> float | None:
        """Seconds until so many of `rows` taken rows come free; None before a first one did."""
        return self._turnover.wait_s(turns, rows)

    def retry_after_s(self, turns: int, rows: int) -> float | None:
        """The same as advice for a client; None leaves it to the table of failures."""
        wait_s = self.wait_s(turns, rows)
        return None if wait_s is None else float(math.ceil(min(max(wait_s, MIN_RETRY_S), MAX_RETRY_S)))
