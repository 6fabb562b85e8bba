"""Sessions as the coordinator sees them: a queue, the rows that run, and each session's log of tokens.

The log (prompt ids and emitted tokens) is what any device, the source included, can be replaced from. Events carry
their index: a repeated one is dropped, a gap is asked for again. Pure: `now` is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from agent.wire.messages import (
    CancelSession,
    OpenSession,
    ResumeEvents,
    SessionEnded,
    SessionFailed,
    TokenEvent,
)
from edgectl.effects import Deliver, Effect, SendSource
from edgectl.engine import EngineError

MAX_QUEUED_SESSIONS = 64
"""Sessions that wait for a row: one client's burst fits, and the last of 64 waits minutes for its first token."""

RESUME_INTERVAL_S = 1.0
"""A gap is asked for again this often: the first time may have been lost with the connection that lost the events."""

CANCEL_PATIENCE_S = 10.0
"""A cancelled session whose end is not confirmed by then gives up its row: longer than any step or answer time-out."""


class SessionState(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"


@dataclass(slots=True)
class SessionRecord:
    """One session and its log."""

    opening: OpenSession
    """What was asked for; the micro-batch is filled in when it gets a row."""
    state: SessionState = SessionState.QUEUED
    emitted: list[int] = field(default_factory=list)
    resume_asked: float | None = None
    """When a gap was last asked for; None while there is none."""
    cancelled_at: float = 0.0

    @property
    def session(self) -> str:
        return self.opening.session


@dataclass(slots=True)
class SessionCounts:
    """Totals since the coordinator started."""

    opened: int = 0
    ended: int = 0
    failed: int = 0
    tokens: int = 0


class SessionTable:
    """The sessions of one route, `rows` of them running at a time, the rest in order of arrival."""

    def __init__(self, rows: int = 1) -> None:
        self._rows = rows
        self._queue: deque[SessionRecord] = deque()
        self._running: dict[str, SessionRecord] = {}
        self.counts = SessionCounts()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running)

    def open(self, opening: OpenSession) -> None:
        """Puts a session at the end of the queue. Raises EngineError `queue_full`."""
        if len(self._queue) >= MAX_QUEUED_SESSIONS:
            raise EngineError("queue_full", f"{len(self._queue)} sessions wait already, at most {MAX_QUEUED_SESSIONS}")
        self._queue.append(SessionRecord(opening))
        self.counts.opened += 1

    def start(self, micro_batch: int) -> list[Effect]:
        """Gives free rows of the micro-batch to the sessions that have waited longest."""
        effects: list[Effect] = []
        while self._queue and len(self._running) < self._rows:
            record = self._queue.popleft()
            record.state = SessionState.RUNNING
            self._running[record.session] = record
            effects.append(SendSource(msgspec.structs.replace(record.opening, micro_batch=micro_batch)))
        return effects

    def on_token(self, event: TokenEvent, now: float) -> list[Effect]:
        """The next token is logged and delivered, a repeated one dropped, a gap asked for."""
        record = self._running.get(event.session)
        if record is None or event.index < len(record.emitted):
            return []
        if event.index > len(record.emitted):
            return self._ask_again(record, now)
        record.emitted.append(event.token)
        record.resume_asked = None
        self.counts.tokens += 1
        if record.state is SessionState.CANCELLING:
            return []
        return [Deliver(record.session, event)]

    def on_ended(self, event: SessionEnded, now: float) -> list[Effect]:
        """Frees the row, unless tokens are missing: these are asked for first, and the end comes again after them."""
        record = self._running.get(event.session)
        if record is None:
            return []
        if record.state is SessionState.RUNNING and event.tokens > len(record.emitted):
            return self._ask_again(record, now)
        del self._running[event.session]
        self.counts.ended += 1
        # A cancelled session was told of its end when it was cancelled.
        return [] if record.state is SessionState.CANCELLING else [Deliver(event.session, event)]

    def on_failed(self, event: SessionFailed) -> list[Effect]:
        """Frees the row; the session's reader gets the typed error."""
        record = self._running.pop(event.session, None)
        if record is None:
            return []
        self.counts.failed += 1
        if record.state is SessionState.CANCELLING:
            return []
        return [Deliver(event.session, EngineError(event.code, event.detail))]

    def cancel(self, session: str, now: float) -> list[Effect]:
        """Ends a session for its reader at once; its row is free when the source confirms. Unknown ones are ignored."""
        for record in self._queue:
            if record.session == session:
                self._queue.remove(record)
                self.counts.ended += 1
                return [Deliver(session, SessionEnded(session, "cancelled", 0))]
        running = self._running.get(session)
        if running is None or running.state is SessionState.CANCELLING:
            return []
        running.state = SessionState.CANCELLING
        running.cancelled_at = now
        ended = SessionEnded(session, "cancelled", len(running.emitted))
        return [SendSource(CancelSession(session)), Deliver(session, ended)]

    def resume(self, now: float) -> list[Effect]:
        """The source's worker has a new connection: asks for whatever the old one may have lost."""
        effects: list[Effect] = []
        for record in self._running.values():
            if record.state is SessionState.CANCELLING:
                effects.append(SendSource(CancelSession(record.session)))
            else:
                effects += self._ask_again(record, now, insist=True)
        return effects

    def on_tick(self, now: float) -> list[Effect]:
        """Repeats unanswered requests for lost events and gives up on cancellations nobody confirmed."""
        effects: list[Effect] = []
        for record in list(self._running.values()):
            if record.state is SessionState.CANCELLING:
                if now - record.cancelled_at > CANCEL_PATIENCE_S:
                    del self._running[record.session]
                    self.counts.failed += 1
            elif record.resume_asked is not None:
                effects += self._ask_again(record, now)
        return effects

    def fail_running(self, code: str, detail: str) -> list[Effect]:
        """The micro-batch is gone: the sessions that had a row end with the error, those that wait go on waiting."""
        effects: list[Effect] = []
        for record in self._running.values():
            self.counts.failed += 1
            if record.state is not SessionState.CANCELLING:
                effects.append(Deliver(record.session, EngineError(code, detail)))
        self._running.clear()
        return effects

    def fail_all(self, code: str, detail: str) -> list[Effect]:
        """The route is gone and nobody knows for how long: every session ends with the error."""
        effects = self.fail_running(code, detail)
        for record in self._queue:
            self.counts.failed += 1
            effects.append(Deliver(record.session, EngineError(code, detail)))
        self._queue.clear()
        return effects

    def cancel_all(self, now: float) -> list[Effect]:
        """Cancels every session, the queued ones first, so that none starts on a row that comes free."""
        names = [record.session for record in self._queue] + list(self._running)
        return [effect for name in names for effect in self.cancel(name, now)]

    def _ask_again(self, record: SessionRecord, now: float, *, insist: bool = False) -> list[Effect]:
        asked = record.resume_asked
        if not insist and asked is not None and now - asked < RESUME_INTERVAL_S:
            return []
        record.resume_asked = now
        return [SendSource(ResumeEvents(record.session, len(record.emitted)))]
