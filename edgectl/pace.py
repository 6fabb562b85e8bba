"""How quickly routes serve, as the coordinator observes it, and what to expect of them from that. Pure.

A route's pace is known per number of sessions on it: one session more lengthens the steps of all where a device is
busy, and costs nothing where the pipeline has bubbles. What was not observed yet is bounded by what was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

SMOOTHING = 0.1
"""Weight of an observation: the last twenty count for nine tenths, a second or two of one session."""

RATE_SPAN_S = 10.0
"""Over how long tokens per second are counted."""


class Pace:
    """One route: seconds per token by the number of its sessions, and per token of a prompt."""

    def __init__(self, predicted_s: float | None = None) -> None:
        self._token_s: dict[int, float] = {}
        self._prompt_s: float | None = None
        self._predicted_s = predicted_s
        """Per token of a single session, by the plan."""

    def token(self, sessions: int, seconds: float) -> None:
        """A session's next token came after `seconds`, with so many sessions on the route."""
        self._token_s[sessions] = _smoothed(self._token_s.get(sessions), seconds)

    def first_token(self, prompt_tokens: int, seconds: float) -> None:
        """A session's first token came `seconds` after it got its row."""
        self._prompt_s = _smoothed(self._prompt_s, seconds / max(1, prompt_tokens))

    def token_s(self, sessions: int) -> float | None:
        """Seconds per token with so many sessions; None where nothing is known.

        Between two observed numbers it lies on the line between. With fewer than ever it is no more than with the
        fewest; with more than ever it grows like a device that never rests.
        """
        known = self._token_s or ({} if self._predicted_s is None else {1: self._predicted_s})
        below = max((number for number in known if number <= sessions), default=None)
        above = min((number for number in known if number >= sessions), default=None)
        if below is None:
            return None if above is None else known[above]
        if above is None:
            return known[below] * sessions / max(1, below)
        if above == below:
            return known[below]
        share = (sessions - below) / (above - below)
        return known[below] + share * (known[above] - known[below])

    @property
    def prompt_s(self) -> float | None:
        return self._prompt_s


def completion_s(paces: Mapping[int, Pace], sessions: Mapping[int, int], prompt: int, tokens: int) -> dict[int, float]:
    """How long a session of so many tokens would take on each route that has `sessions` already.

    A route of which nothing is known counts like the average of the others: it is tried, but not preferred.
    """
    token_s = _filled({route: pace.token_s(sessions.get(route, 0) + 1) for route, pace in paces.items()})
    prompt_s = _filled({route: pace.prompt_s for route, pace in paces.items()})
    return {route: prompt * prompt_s[route] + tokens * token_s[route] for route in paces}


class Turnover:
    """How long sessions hold their rows, and from that how long others wait for one."""

    def __init__(self) -> None:
        self._held_s: float | None = None

    def row_freed(self, held_s: float) -> None:
        self._held_s = _smoothed(self._held_s, held_s)

    def wait_s(self, turns: int, rows: int) -> float | None:
        """Seconds until so many rows have come free, of `rows` that all are taken; None before the first one did."""
        if self._held_s is None or rows < 1:
            return None
        return turns * self._held_s / rows


class TokenRate:
    """Tokens per second of all sessions while there are any; it stays what it was while there are none."""

    def __init__(self) -> None:
        self._tokens: deque[float] = deque()
        self._busy_since: float | None = None
        self._last: float | None = None

    def busy(self, now: float) -> None:
        """A session runs."""
        if self._busy_since is None:
            self._busy_since = now
            self._tokens.clear()

    def idle(self, now: float) -> None:
        """No session runs any more."""
        self._last = self.per_s(now)
        self._busy_since = None

    def token(self, now: float) -> None:
        self._tokens.append(now)
        while self._tokens[0] < now - RATE_SPAN_S:
            self._tokens.popleft()

    def per_s(self, now: float) -> float | None:
        """None before the first token."""
        if self._busy_since is None:
            return self._last
        since = max(self._busy_since, now - RATE_SPAN_S)
        count = sum(1 for at in self._tokens if at >= since)
        return count / (now - since) if count and now > since else self._last


def _smoothed(before: float | None, observed: float) -> float:
    return observed if before is None else before + SMOOTHING * (observed - before)


def _filled(values: Mapping[int, float | None]) -> dict[int, float]:
    known: Sequence[float] = [value for value in values.values() if value is not None]
    average = sum(known) / len(known) if known else 0.0
    return {key: average if value is None else value for key, value in values.items()}
