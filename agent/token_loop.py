"""The source's side of one micro-batch: which frames could go next, and what an answer means. Pure.

Rules
1. At most one decode frame and two prefill chunks are in flight.
2. A decode frame carries every row that is ready when it is taken. Rows never wait for each other otherwise.
3. Steps are numbered in the order in which frames are taken; answers come back in that order.
4. New sessions take the lowest free row. Reuse raises the row's generation, so a late answer cannot reach the
   session that came after.
5. What could go is said here, what does go is chosen among all micro-batches (`schedule`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.errors import AgentError, AnswerTimeout
from agent.handover import Handover, Slice
from agent.sessions import Session, SessionState, check_session
from agent.wire.codec import Answered, FrameKind, RowRef
from agent.wire.messages import FromSource, Opening, OpenSession

CHUNKS_IN_FLIGHT = 2
ENDED_SESSIONS_KEPT = 64
"""Ended sessions whose events a coordinator that lost its connection may still ask for."""
ENDED_EVENTS_KEPT = 16384
"""Of all of them together, the last one always: 3 MiB, or 40 MiB where each token comes with twenty alternatives."""
ANSWER_LATE_S = 10.0
"""An answer this much later than expected fails the micro-batch. It is expected in twice the longest time yet, counted
from when what went before it was answered: where many micro-batches share a slow stage, waiting is no lateness."""
FIRST_ANSWER_S = 120.0
"""Expectation before anything was measured: the first chunk of a 13B model on the slowest CPU we know takes 60 s."""
STALLED_ROUNDS = 3.0
"""A decode frame that is out for so many times its usual time stands still somewhere; others need not spare it."""
STALLED_S = 1.0
"""And at least for this long."""


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
    split: int = 0
    """Where its rows are cut, if that may change."""
    slice: Slice | None = None
    """Of keys and values, in place of tokens."""


@dataclass(slots=True)
class _InFlight:
    frame: NextFrame
    sessions: tuple[Session, ...]
    since_s: float
    """When it could have gone."""
    sent_s: float
    heard_s: float
    """When something that went before it was last answered, on whatever micro-batch of this source, or `sent_s`."""

    @property
    def tokens(self) -> int:
        return max((len(row) for row in self.frame.tokens), default=1)


class UnderWay(NamedTuple):
    """A frame that is not answered yet."""

    sent_s: float
    late_s: float
    """From when on it is late by itself."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """What is to be chosen from, as long as nothing changes: asked before each run, of every micro-batch."""

    prompts: tuple[Session, ...]
    ready: tuple[Session, ...]
    """Those of them that would go in one frame: they are cut at the same layer."""
    ready_since_s: float | None
    waits: bool
    """Others are ready, but wait for the split to move."""
    decode: _InFlight | None
    chunks: int
    """Under way, as is `decode`."""


class TokenLoop:
    """Rows, sessions and steps of one micro-batch at its source."""

    def __init__(self, rows: int, chunk: int, context: int, vocab_size: int, handover: Handover | None = None) -> None:
        """`handover` where the route's first split point may move."""
        self._handover = handover
        self._news: list[FromSource] = []
        self._rows: list[Session | None] = [None] * rows
        self._generations = [0] * rows
        self._chunk = chunk
        self._context = context
        self._vocab_size = vocab_size
        self._step = 0
        self._in_flight: OrderedDict[int, _InFlight] = OrderedDict()
        self._ended: OrderedDict[str, Session] = OrderedDict()
        self._ended_events = 0
        self._known: _Standing | None = None
        self._slowest_s_per_token = 0.0
        """Of a chunk, from when what went before it was answered."""
        self._slowest_round_s = 0.0
        """Likewise of a decode frame: what held it up says nothing of chunks, which have many more tokens."""
        self._usual_round_s = 0.0
        self.answered = -1

    def open(self, opened: OpenSession, now: float = 0.0) -> Session:
        """Put a session on the lowest free row. Raises NoFreeRow, and AgentError for one that cannot run here."""
        if opened.session in self._ended or self.session(opened.session) is not None:
            raise AgentError(f"session {opened.session} is open already")
        check_session(opened, self._context, self._vocab_size)
        for row, holder in enumerate(self._rows):
            if holder is None:
                self._generations[row] += 1
                session = Session(opened, row, self._generations[row], opened_s=now)
                self._rows[row] = session
                self._known = None
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
        self._known = None
        if self._rows[session.row] is session:
            self._rows[session.row] = None
            self._ended[session.opened.session] = session
            self._ended_events += len(session.events)
            while len(self._ended) > ENDED_SESSIONS_KEPT or (
                self._ended_events > ENDED_EVENTS_KEPT and len(self._ended) > 1
            ):
                _, forgotten = self._ended.popitem(last=False)
                self._ended_events -= len(forgotten.events)

    # --- what could go ---

    @property
    def is_quiet(self) -> bool:
        """Nothing of this micro-batch is under way."""
        return not self._in_flight

    @property
    def is_decoding(self) -> bool:
        """A decode frame is under way."""
        return self._standing().decode is not None

    @property
    def is_prefilling(self) -> bool:
        """A chunk is under way."""
        return self._standing().chunks > 0

    @property
    def rows_decoding(self) -> int:
        """Rows that are ready, or in the decode frame under way."""
        standing = self._standing()
        return len(standing.ready) + (len(standing.decode.frame.rows) if standing.decode else 0)

    def ready_since_s(self) -> float | None:
        """Since when a decode frame could go, None while none can."""
        standing = self._standing()
        return standing.ready_since_s if standing.decode is None else None

    def wants_to_decode(self, now: float) -> bool:
        """A row is ready, or a decode frame is under way that has not come to a standstill somewhere."""
        standing = self._standing()
        if standing.decode is not None:
            return now - standing.decode.sent_s <= max(STALLED_S, STALLED_ROUNDS * self._usual_round_s)
        return bool(standing.ready) or standing.waits

    def next_prompt(self, s_per_token: float = 0.0) -> Session | None:
        """Of the sessions with a prompt still to be sent the one that is due first, if a token of a prompt takes so
        long; None while no chunk may go."""
        standing = self._standing()
        if standing.chunks >= CHUNKS_IN_FLIGHT or not standing.prompts:
            return None
        return min(standing.prompts, key=lambda session: (session.due_s(s_per_token), session.row))

    def slice_since_s(self) -> float | None:
        """Since when a slice of keys and values could go, None while none is needed."""
        return self._handover.wanted_since_s(self.running()) if self._handover is not None else None

    def _standing(self) -> _Standing:
        if self._known is None:
            running = self.running()
            ready, waits = self._next_ready(running)
            under_way = self._in_flight.values()
            self._known = _Standing(
                prompts=tuple(session for session in running if session.state is SessionState.PREFILL),
                ready=ready,
                ready_since_s=min((session.ready_s for session in ready), default=None),
                waits=waits,
                decode=next((sent for sent in under_way if sent.frame.kind is FrameKind.DECODE), None),
                chunks=sum(sent.frame.kind is FrameKind.PREFILL for sent in under_way),
            )
        return self._known

    def _next_ready(self, running: list[Session]) -> tuple[tuple[Session, ...], bool]:
        """Rows of the next decode frame, and whether others are ready but wait for the split to move."""
        ready = tuple(session for session in running if session.state is SessionState.READY)
        handover = self._handover
        if handover is None or not ready:
            return ready, False
        going = [session for session in ready if not handover.waits(session, running)]
        splits = {session.row: handover.next_split(session, running) for session in going}
        first = min(going, key=lambda session: (session.ready_s, session.row), default=None)
        group = tuple(s for s in going if first is not None and splits[s.row] == splits[first.row])
        return group, len(going) < len(ready)

    # --- what goes ---

    def take_chunk(self, session: Session, now: float, since_s: float, most_tokens: int) -> NextFrame:
        """The next chunk of this prompt, of at most `most_tokens` (≥ 3); it counts as in flight from now on."""
        assert self._standing().chunks < CHUNKS_IN_FLIGHT, "no chunk may go"
        ref = RowRef(session.row, session.generation, session.position)
        opening = Opening(session.row, session.generation, session.opened.sampling)
        openings = (opening,) if session.position == 0 else ()
        self._cut([session])
        tokens, last = session.next_chunk(min(most_tokens, self._chunk))
        self._has_gone([session])
        frame = NextFrame(FrameKind.PREFILL, self._step, (ref,), (tokens,), last, openings, session.split)
        return self._take(_InFlight(frame, (session,), since_s, now, now))

    def take_decode(self, now: float, since_s: float) -> NextFrame:
        """A decode frame of every row that is ready; it counts as in flight from now on."""
        ready = self._standing().ready
        assert ready, "no decode frame may go"
        assert not self.is_decoding, "one is under way"
        rows = tuple(RowRef(s.row, s.generation, s.position) for s in ready)
        self._cut(ready)
        tokens = tuple((s.next_token(),) for s in ready)
        self._has_gone(ready)
        frame = NextFrame(FrameKind.DECODE, self._step, rows, tokens, True, (), ready[0].split)
        return self._take(_InFlight(frame, ready, since_s, now, now))

    def take_slice(self, now: float) -> NextFrame:
        """The next slice of keys and values; it counts as in flight from now on."""
        assert self._handover is not None, "nothing changes hands here"
        since_s = self.slice_since_s()
        assert since_s is not None, "no slice may go"
        taken = self._handover.take(self.running())
        frame = NextFrame(taken.kind, self._step, taken.rows, (), False, (), slice=taken)
        return self._take(_InFlight(frame, (), since_s, now, now))

    def _cut(self, sessions: Sequence[Session]) -> None:
        """Their next tokens are about to go: say where they are cut from now on, where that is news."""
        handover = self._handover
        if handover is None:
            return
        running = self.running()
        splits = [handover.next_split(session, running) for session in sessions]
        for session, split in zip(sessions, splits, strict=True):
            if session.position == 0:
                handover.opened(session.row)
            if session.position == 0 or split != session.split:
                self._news += session.moved(split)

    def _has_gone(self, sessions: Sequence[Session]) -> None:
        if self._handover is not None:
            for session in sessions:
                self._handover.ran(session)

    def _take(self, taken: _InFlight) -> NextFrame:
        self._known = None
        self._in_flight[self._step] = taken
        self._step += 1
        return taken.frame

    def answer(self, step: int, answers: tuple[Answered, ...], now: float) -> list[FromSource]:
        """The answer to a step in flight: events for the coordinator. Raises KeyError for a step not in flight."""
        sent = self._in_flight.pop(step)
        self._known = None
        self.answered = step
        waited_s = now - sent.heard_s
        if sent.frame.slice is not None:
            return []
        if sent.frame.kind is FrameKind.DECODE:
            self._slowest_round_s = max(self._slowest_round_s, waited_s)
            self._usual_round_s = smoothed(self._usual_round_s, now - sent.sent_s)
        else:
            self._slowest_s_per_token = max(self._slowest_s_per_token, waited_s / sent.tokens)
        events: list[FromSource] = []
        if sent.frame.sample:
            for session, token in zip(sent.sessions, answers, strict=True):
                if not session.has_ended:
                    events += session.take(token, self._context)
                    session.ready_s = now
            for session in sent.sessions:
                if session.has_ended:
                    self.retire(session)
        return events

    def is_in_flight(self, step: int) -> bool:
        return step in self._in_flight

    def rows_in_flight(self, step: int) -> int:
        """Answers expected for a step in flight (0 when it does not sample). Raises KeyError."""
        frame = self._in_flight[step].frame
        return len(frame.rows) if frame.sample else 0

    def since_s(self, step: int) -> float:
        """When a step in flight could have gone. Raises KeyError."""
        return self._in_flight[step].since_s

    def kind(self, step: int) -> FrameKind:
        return self._in_flight[step].frame.kind

    # --- a split point that moves ---

    @property
    def handover(self) -> Handover | None:
        """Whoever gets it may change what could go."""
        self._known = None
        return self._handover

    def news(self, now: float) -> list[FromSource]:
        """What has become of a move, and where sessions are cut since it was last asked."""
        news, self._news = self._news, []
        done = None if self._handover is None else self._handover.finished(self.running(), now)
        return news if done is None else [*news, done]

    # --- lateness ---

    def sent_s(self, step: int) -> float:
        """When a step in flight went. Raises KeyError."""
        return self._in_flight[step].sent_s

    def has_heard(self, sent_s: float, now: float) -> None:
        """A frame of this source that went at `sent_s` is answered: what went later stands in line no longer than
        from now on."""
        for sent in self._in_flight.values():
            if sent.sent_s >= sent_s:
                sent.heard_s = now

    def under_way(self) -> list[UnderWay]:
        """Frames in flight, the oldest first."""
        return [UnderWay(sent.sent_s, sent.heard_s + self._patience_s(sent)) for sent in self._in_flight.values()]

    def _patience_s(self, sent: _InFlight) -> float:
        expected_s = 2 * self._slowest_s_per_token * sent.tokens
        if sent.frame.kind is not FrameKind.PREFILL:
            expected_s = max(expected_s, 2 * self._slowest_round_s)
        return ANSWER_LATE_S + (expected_s or FIRST_ANSWER_S)

    def expire(self, now: float, others: Iterable[UnderWay] = ()) -> None:
        """Raises AnswerTimeout when the oldest frame in flight is late, and with it all those of `others`, the source's
        other micro-batches, that went before it: stages take frames in about the order in which they came."""
        for step, sent in self._in_flight.items():
            late_s = sent.heard_s + self._patience_s(sent)
            late_s = max([late_s, *(other.late_s for other in others if other.sent_s <= sent.sent_s)])
            if now > late_s:
                kind = sent.frame.kind.name.lower()
                raise AnswerTimeout(f"step {step} ({kind}) is {now - late_s + ANSWER_LATE_S:.1f} s late")
            return


def smoothed(usual: float, measured: float) -> float:
    """A running mean of about the last four measurements; the first one as it is."""
    return usual + (measured - usual) / 4 if usual else measured
