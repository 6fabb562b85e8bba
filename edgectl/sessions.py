"""Sessions as the coordinator sees them: who waits, who has a row where, and each session's log of tokens.

The log (prompt ids and emitted tokens) is what any device, the source included, can be replaced from. Events carry
their index: a repeated one is dropped, a gap is asked for again. A source that knows nothing of a session that has no
token yet never got its opening, which was lost with a connection: it gets it again. Pure: `now` is an argument.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from agent.wire.messages import (
    CancelSession,
    OpenSession,
    ResumeEvents,
    SessionEnded,
    SessionFailed,
    SessionMoved,
    TokenEvent,
)
from edgectl.adaptive.schedule import EndedSchedule, SplitSchedule
from edgectl.cluster_settings import ClusterSettings
from edgectl.effects import Deliver, Effect, SendSource
from edgectl.engine import Claim, EngineError
from edgectl.fair_queue import FairQueue
from edgectl.routes import Seat
from edgectl.traffic import Traffic

RESUME_INTERVAL_S = 1.0
"""A gap is asked for again this often: the first time may have been lost with the connection that lost the events."""

UNKNOWN_SESSION = "unknown_session"
"""What a source says that is asked about a session it does not have."""

MAX_PATIENCE_S = 86_400.0
"""Sources refuse more: whoever is due in a day is not due."""

KEPT_SCHEDULES = 64
"""Damage schedules of ended sessions that status shows: those of the last minutes."""

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
    """What was asked for; micro-batch and patience are filled in when it gets a row."""
    key: str = ""
    """Whose it is: the digest of an API key."""
    due_s: float = 0.0
    """When its first token should be there."""
    seat: Seat | None = None
    """The micro-batch in which it has a row; None while it waits."""
    seated_s: float = 0.0
    """When it got its row."""
    token_s: float = 0.0
    """When its last token came."""
    state: SessionState = SessionState.QUEUED
    emitted: list[int] = field(default_factory=list)
    schedule: SplitSchedule | None = None
    """Where its route is split, position by position; None until it has a row."""
    resume_asked: float | None = None
    """When a gap was last asked for; None while there is none."""
    asked: int = 0
    """How often its source was asked since it was told to open the session."""
    outdated: int = 0
    """Of the questions before that, those that may still be answered: with what was true then."""
    cancelled_at: float = 0.0

    @property
    def session(self) -> str:
        return self.opening.session

    @property
    def position(self) -> int:
        """Of the token that is made next."""
        return len(self.opening.prompt) + len(self.emitted)

    @property
    def remaining(self) -> int:
        """Tokens it may still ask for."""
        return self.opening.max_tokens - len(self.emitted)


@dataclass(slots=True)
class SessionCounts:
    """Totals since the coordinator started."""

    opened: int = 0
    ended: int = 0
    failed: int = 0
    tokens: int = 0


class SessionTable:
    """The sessions of all routes: as many run as micro-batches have rows, the rest waits its turn."""

    def __init__(self, settings: ClusterSettings | None = None) -> None:
        self._settings = settings or ClusterSettings()
        self._queue: FairQueue[SessionRecord] = FairQueue()
        self._running: dict[str, SessionRecord] = {}
        self.counts = SessionCounts()
        self.traffic = Traffic()
        self.schedules: deque[EndedSchedule] = deque(maxlen=KEPT_SCHEDULES)
        """Of sessions that have ended, the last one at the end."""

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running)

    def in_use(self) -> Counter[int]:
        """Rows that are taken, by the number of the micro-batch."""
        return Counter(record.seat.micro_batch for record in self._running.values() if record.seat is not None)

    def seated(self, micro_batch: int) -> list[SessionRecord]:
        """Sessions that have a row in a micro-batch."""
        return [
            each for each in self._running.values() if each.seat is not None and each.seat.micro_batch == micro_batch
        ]

    def find(self, session: str) -> SessionRecord | None:
        """A session that has a row."""
        return self._running.get(session)

    def queued_by_key(self) -> dict[str, int]:
        return self._queue.by_key()

    def open(self, opening: OpenSession, claim: Claim, now: float, seats: Sequence[Seat]) -> None:
        """Lets a session wait for a row. Raises EngineError `queue_full` and `too_many_sessions`."""
        rows = sum(seat.rows for seat in seats)
        of_key = self._queue.by_key().get(claim.key, 0) + sum(
            record.key == claim.key and record.state is SessionState.RUNNING for record in self._running.values()
        )
        limit = self._settings.max_sessions_per_key
        if limit and of_key >= limit:
            # One of its own has to end; that it runs at all is the least that can be said of it.
            retry_s = self.traffic.retry_after_s(1, min(rows, of_key))
            raise EngineError(
                "too_many_sessions", f"{of_key} sessions of this key wait or run, at most {limit}", retry_s
            )
        waiting, most = len(self._queue), self._settings.max_queued
        used = self.in_use()
        free = sum(seat.rows - used[seat.micro_batch] for seat in seats)
        # One of every key may wait beyond that: else a key that fills the queue would keep all others out of it.
        is_first_of_key = not self._queue.by_key().get(claim.key)
        if waiting >= most + free and not (most and is_first_of_key):
            # When half of those who wait have had their turn: whoever is sent away does not come back at once.
            retry_s = self.traffic.retry_after_s(max(1, waiting // 2), rows)
            raise EngineError("queue_full", f"{waiting} sessions wait already, at most {most}", retry_s)
        record = SessionRecord(opening, claim.key, claim.due_s(now))
        self._queue.put(record.key, record.due_s, record.session, record)
        self.counts.opened += 1

    def start(self, seats: Sequence[Seat], now: float) -> list[Effect]:
        """Gives free rows to those who wait, each where it is expected to be done first."""
        effects: list[Effect] = []
        used = self.in_use()
        while free := [seat for seat in seats if used[seat.micro_batch] < seat.rows]:
            record = self._queue.pop()
            if record is None:
                break
            seat = self.traffic.choose(free, used, len(record.opening.prompt), record.opening.max_tokens)
            used[seat.micro_batch] += 1
            record.seat, record.state, record.seated_s = seat, SessionState.RUNNING, now
            record.schedule = SplitSchedule(seat.split)
            self.traffic.seated(seat, now)
            self._running[record.session] = record
            effects.append(_opening(record, seat, now))
        return effects

    def on_token(self, event: TokenEvent, now: float) -> list[Effect]:
        """The next token is logged and delivered, a repeated one dropped, a gap asked for."""
        record = self._running.get(event.session)
        if record is None or event.index < len(record.emitted):
            return []
        if event.index >= record.opening.max_tokens:
            return self._refuse(record, f"token {event.index}", now)
        if event.index > len(record.emitted):
            return self._ask_again(record, now)
        self._observe(record, now)
        record.emitted.append(event.token)
        record.resume_asked = None
        self.counts.tokens += 1
        if record.state is SessionState.CANCELLING:
            return []
        return [Deliver(record.session, event)]

    def on_moved(self, event: SessionMoved, split_points: Sequence[int], now: float) -> list[Effect]:
        """Its hidden states leave the source elsewhere from a position on: what an exact replay has to know."""
        record = self._running.get(event.session)
        if record is None or record.schedule is None:
            return []
        last = len(record.opening.prompt) + record.opening.max_tokens
        if not 0 <= event.position <= last or event.split not in split_points:
            return self._refuse(record, f"a move at position {event.position} to split {event.split}", now)
        record.schedule.moved(event.position, event.split)
        return []

    def on_ended(self, event: SessionEnded, now: float) -> list[Effect]:
        """Frees the row, unless tokens are missing: these are asked for first, and the end comes again after them."""
        record = self._running.get(event.session)
        if record is None:
            return []
        if event.tokens > record.opening.max_tokens:
            return self._refuse(record, f"an end after {event.tokens} tokens", now)
        if record.state is SessionState.RUNNING and event.tokens > len(record.emitted):
            return self._ask_again(record, now)
        self._free(record, now, has_ended=True)
        self.counts.ended += 1
        # A cancelled session was told of its end when it was cancelled.
        return [] if record.state is SessionState.CANCELLING else [Deliver(event.session, event)]

    def on_failed(self, event: SessionFailed, now: float) -> list[Effect]:
        """Frees the row; the session's reader gets the typed error. One that its source never heard of begins."""
        record = self._running.get(event.session)
        if record is None:
            return []
        is_running = record.state is SessionState.RUNNING
        if event.code == UNKNOWN_SESSION and is_running and not record.emitted and record.seat is not None:
            return self._open_again(record, record.seat, now)
        self._free(record, now)
        self.counts.failed += 1
        if record.state is SessionState.CANCELLING:
            return []
        return [Deliver(event.session, EngineError(event.code, event.detail))]

    def cancel(self, session: str, now: float) -> list[Effect]:
        """Ends a session for its reader at once; its row is free when the source confirms. Unknown ones are ignored."""
        if self._queue.remove(session) is not None:
            self.counts.ended += 1
            return [Deliver(session, SessionEnded(session, "cancelled", 0))]
        running = self._running.get(session)
        if running is None or running.state is SessionState.CANCELLING:
            return []
        running.state = SessionState.CANCELLING
        running.cancelled_at = now
        ended = SessionEnded(session, "cancelled", len(running.emitted))
        return [*_to_source(running, CancelSession(session)), Deliver(session, ended)]

    def resume(self, source: str, now: float) -> list[Effect]:
        """The worker of a source has a new connection: asks for whatever the old one may have lost."""
        effects: list[Effect] = []
        for record in self._running.values():
            if record.seat is None or record.seat.source != source:
                continue
            if record.state is SessionState.CANCELLING:
                effects += _to_source(record, CancelSession(record.session))
            else:
                effects += self._ask_again(record, now, insist=True)
        return effects

    def on_tick(self, now: float) -> list[Effect]:
        """Repeats unanswered requests for lost events and gives up on cancellations nobody confirmed."""
        effects: list[Effect] = []
        for record in list(self._running.values()):
            if record.state is SessionState.CANCELLING:
                if now - record.cancelled_at > CANCEL_PATIENCE_S:
                    self._free(record, now)
                    self.counts.failed += 1
            elif record.resume_asked is not None:
                effects += self._ask_again(record, now)
        return effects

    def fail_running(self, micro_batches: Iterable[int], code: str, detail: str, now: float) -> list[Effect]:
        """These micro-batches are gone: sessions that had a row there end with the error, those that wait go on."""
        gone = set(micro_batches)
        effects: list[Effect] = []
        for record in list(self._running.values()):
            if record.seat is None or record.seat.micro_batch not in gone:
                continue
            self._free(record, now)
            self.counts.failed += 1
            if record.state is not SessionState.CANCELLING:
                effects.append(Deliver(record.session, EngineError(code, detail)))
        return effects

    def fail_queued(self, code: str, detail: str) -> list[Effect]:
        """Nothing serves, and nobody knows for how long: who waits ends with the error."""
        waiting = self._queue.drain()
        self.counts.failed += len(waiting)
        return [Deliver(record.session, EngineError(code, detail)) for record in waiting]

    def cancel_all(self, now: float) -> list[Effect]:
        """Cancels every session, the queued ones first, so that none starts on a row that comes free."""
        names = self._queue.names() + list(self._running)
        return [effect for name in names for effect in self.cancel(name, now)]

    def _refuse(self, record: SessionRecord, what: str, now: float) -> list[Effect]:
        """A source that counts beyond what was asked for: its log would grow, or be waited for, without end."""
        source = "" if record.seat is None else record.seat.source
        detail = (
            f"{source} sent {what} of session {record.session}, which has at most {record.opening.max_tokens} tokens"
        )
        told = _to_source(record, CancelSession(record.session))
        return [*told, *self.on_failed(SessionFailed(record.session, "protocol_error", detail), now)]

    def _observe(self, record: SessionRecord, now: float) -> None:
        """What a token that came in order says about the route it came by."""
        if record.seat is None:
            return
        if not record.emitted:
            self.traffic.first_token(record.seat, now, len(record.opening.prompt), now - record.seated_s)
        else:
            # What is sent again comes in one burst.
            since_s = None if record.resume_asked is not None else now - record.token_s
            self.traffic.token(record.seat, now, since_s)
        record.token_s = now

    def _free(self, record: SessionRecord, now: float, *, has_ended: bool = False) -> None:
        del self._running[record.session]
        if record.seat is not None and record.schedule is not None:
            seat, opening = record.seat, record.opening
            self.schedules.append(
                EndedSchedule(
                    session=record.session,
                    micro_batch=seat.micro_batch,
                    route=seat.route,
                    prompt_tokens=len(opening.prompt),
                    tokens=len(record.emitted),
                    entries=record.schedule.entries,
                )
            )
        if record.seat is not None:
            self.traffic.freed(record.seat, now - record.seated_s if has_ended else None, now)

    def _open_again(self, record: SessionRecord, seat: Seat, now: float) -> list[Effect]:
        """Its row is still its own. Whoever was asked twice says twice that there is no such session."""
        if record.outdated:
            record.outdated -= 1
            return []
        record.asked, record.outdated = 0, max(0, record.asked - 1)
        record.resume_asked = None
        return [_opening(record, seat, now)]

    def _ask_again(self, record: SessionRecord, now: float, *, insist: bool = False) -> list[Effect]:
        asked = record.resume_asked
        if not insist and asked is not None and now - asked < RESUME_INTERVAL_S:
            return []
        record.resume_asked = now
        record.asked += 1
        return _to_source(record, ResumeEvents(record.session, len(record.emitted)))


def _opening(record: SessionRecord, seat: Seat, now: float) -> SendSource:
    patience_s = min(max(record.due_s - now, 0.0), MAX_PATIENCE_S)
    message = msgspec.structs.replace(record.opening, micro_batch=seat.micro_batch, patience_s=patience_s)
    return SendSource(seat.source, message)


def _to_source(record: SessionRecord, message: CancelSession | ResumeEvents) -> list[Effect]:
    return [] if record.seat is None else [SendSource(record.seat.source, message)]
