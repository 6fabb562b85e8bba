"""The source's side of one micro-batch: which frame goes next, and what an answer means. Pure.

Rules
1. At most one decode frame and two prefill chunks are in flight. There are no credits beyond that.
2. A decode frame carries every row that is ready. Rows never wait for each other otherwise.
3. Steps are numbered in the order in which frames leave; answers come back in that order.
4. New sessions take the lowest free row. Reuse raises the row's generation, so a late answer cannot reach the
   session that came after.
5. Where a chunk and a decode frame could both go they take turns, so that a long prompt stalls nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from agent.errors import AgentError, AnswerTimeout
from agent.sessions import Session, SessionState, chunk_lengths
from agent.wire.codec import Answered, FrameKind, RowRef
from agent.wire.messages import FromSource, Opening, OpenSession

CHUNKS_IN_FLIGHT = 2
ENDED_SESSIONS_KEPT = 64
"""Ended sessions whose events a coordinator that lost its connection may still ask for."""
ANSWER_LATE_S = 10.0
"""An answer this much later than expected fails the micro-batch."""
FIRST_ANSWER_S = 120.0
"""Expectation before anything was measured: the first chunk of a 13B model on the slowest CPU we know takes 60 s."""


class NoFreeRow(AgentError):
    code = "no_free_row"


@dataclass(frozen=True, slots=True)
class NextFrame:
    """What the source sends next."""

    kind: FrameKind
    step: int
    rows: tuple[RowRef, ...]
    tokens: tuple[tuple[int, ...], ...]
    sample: bool
    openings: tuple[Opening, ...]


@dataclass(slots=True)
class _InFlight:
    frame: NextFrame
    sessions: tuple[Session, ...]
    sent_s: float

    @property
    def tokens(self) -> int:
        return max(len(row) for row in self.frame.tokens)


class TokenLoop:
    """Rows, sessions and steps of one micro-batch at its source."""

    def __init__(self, rows: int, chunk: int, context: int) -> None:
        self._rows: list[Session | None] = [None] * rows
        self._generations = [0] * rows
        self._chunk = chunk
        self._context = context
        self._step = 0
        self._sent = FrameKind.DECODE
        self._in_flight: OrderedDict[int, _InFlight] = OrderedDict()
        self._ended: OrderedDict[str, Session] = OrderedDict()
        self._slowest_s_per_token = 0.0
        self.answered = -1

    def open(self, opened: OpenSession) -> Session:
        """Put a session on the lowest free row. Raises NoFreeRow."""
        if opened.session in self._ended or self.session(opened.session) is not None:
            raise AgentError(f"session {opened.session} is open already")
        if not opened.prompt or len(opened.prompt) >= self._context or opened.max_tokens < 1:
            raise AgentError(
                f"session {opened.session}: a prompt of {len(opened.prompt)} tokens and {opened.max_tokens} more do "
                f"not fit a context of {self._context}"
            )
        for row, holder in enumerate(self._rows):
            if holder is None:
                self._generations[row] += 1
                chunks = chunk_lengths(len(opened.prompt), self._chunk)
                session = Session(opened, row, self._generations[row], chunks)
                self._rows[row] = session
                return session
        raise NoFreeRow(f"all {len(self._rows)} rows are taken; session {opened.session} must wait")

    def session(self, name: str) -> Session | None:
        """The running or recently ended session of this name."""
        for session in self._rows:
            if session is not None and session.opened.session == name:
                return session
        return self._ended.get(name)

    def running(self) -> list[Session]:
        return [session for session in self._rows if session is not None]

    def retire(self, session: Session) -> None:
        """Free the row of an ended session; its events stay for a while."""
        if self._rows[session.row] is session:
            self._rows[session.row] = None
            self._ended[session.opened.session] = session
            while len(self._ended) > ENDED_SESSIONS_KEPT:
                self._ended.popitem(last=False)

    def next_frame(self, now: float) -> NextFrame | None:
        """The next frame to send, or None while everything waits for an answer. A sent frame counts as in flight."""
        if self._sent is FrameKind.PREFILL:
            frame_and_sessions = self._next_decode() or self._next_chunk()
        else:
            frame_and_sessions = self._next_chunk() or self._next_decode()
        if frame_and_sessions is None:
            return None
        frame, sessions = frame_and_sessions
        self._sent = frame.kind
        self._in_flight[frame.step] = _InFlight(frame, sessions, now)
        self._step += 1
        return frame

    def _next_chunk(self) -> tuple[NextFrame, tuple[Session, ...]] | None:
        if self._count_in_flight(FrameKind.PREFILL) >= CHUNKS_IN_FLIGHT:
            return None
        for session in self._rows:
            if session is not None and session.state is SessionState.PREFILL:
                ref = RowRef(session.row, session.generation, session.position)
                opening = Opening(session.row, session.generation, session.opened.sampling)
                openings = (opening,) if session.position == 0 else ()
                tokens, last = session.next_chunk()
                return NextFrame(FrameKind.PREFILL, self._step, (ref,), (tokens,), last, openings), (session,)
        return None

    def _next_decode(self) -> tuple[NextFrame, tuple[Session, ...]] | None:
        if self._count_in_flight(FrameKind.DECODE):
            return None
        ready = tuple(s for s in self._rows if s is not None and s.state is SessionState.READY)
        if not ready:
            return None
        rows = tuple(RowRef(s.row, s.generation, s.position) for s in ready)
        tokens = tuple((s.next_token(),) for s in ready)
        return NextFrame(FrameKind.DECODE, self._step, rows, tokens, True, ()), ready

    def _count_in_flight(self, kind: FrameKind) -> int:
        return sum(sent.frame.kind is kind for sent in self._in_flight.values())

    def answer(self, step: int, answers: tuple[Answered, ...], now: float) -> list[FromSource]:
        """The answer to a step in flight: events for the coordinator. Raises KeyError for a step not in flight."""
        sent = self._in_flight.pop(step)
        self.answered = step
        self._slowest_s_per_token = max(self._slowest_s_per_token, (now - sent.sent_s) / sent.tokens)
        events: list[FromSource] = []
        if sent.frame.sample:
            for session, token in zip(sent.sessions, answers, strict=True):
                if not session.has_ended:
                    events += session.take(token, self._context)
            for session in sent.sessions:
                if session.has_ended:
                    self.retire(session)
        return events

    def rows_in_flight(self, step: int) -> int:
        """Answers expected for a step in flight (0 when it does not sample). Raises KeyError."""
        frame = self._in_flight[step].frame
        return len(frame.rows) if frame.sample else 0

    def sent_s(self, step: int) -> float:
        """When a step in flight was sent. Raises KeyError."""
        return self._in_flight[step].sent_s

    def kind(self, step: int) -> FrameKind:
        return self._in_flight[step].frame.kind

    def expire(self, now: float) -> None:
        """Raises AnswerTimeout when the oldest frame in flight is later than ANSWER_LATE_S beyond its expected time."""
        for step, sent in self._in_flight.items():
            expected_s = 2 * self._slowest_s_per_token * sent.tokens if self._slowest_s_per_token else FIRST_ANSWER_S
            late_s = now - sent.sent_s - expected_s
            if late_s > ANSWER_LATE_S:
                raise AnswerTimeout(f"step {step} ({sent.frame.kind.name.lower()}) is {late_s:.1f} s late")
            return
