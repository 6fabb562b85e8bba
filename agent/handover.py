"""A split point that moves: which keys and values have to change hands, and from when on a row is cut elsewhere. Pure.

Layers between two split points are run by the source or by the stage behind it. What the other one needs to run them
for a row is the keys and values of the tokens so far: they are copied while the row goes on, as memory is when a
virtual machine migrates live (Clark et al., "Live Migration of Virtual Machines", NSDI 2005), only that what is copied
never changes, and just the newest tokens are still to come.

Rules
1. One slice at a time is under way, in step order with all other frames: what was answered is there.
2. A row is cut elsewhere when all its tokens so far are there, from its next token on. Rows that decode change
   together, so that they stay in one frame; prompts one by one, between two chunks; what begins does so at the new one.
3. A row whose last few tokens are all that is missing waits for them. Nothing else waits for a move.
4. At most two splits occur at a time. Where a move is given up, rows stay as they are cut, and go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.errors import AgentError
from agent.sessions import Session
from agent.slice_size import SliceSize
from agent.wire.codec import MAX_HIDDEN_SIZE, MAX_TOKENS_PER_ROW, CodecId, FrameKind, RowRef
from agent.wire.ledger import Ledger
from agent.wire.messages import SplitKept, SplitMoved
from planner.types import LayerRange

MOVE_LATE_S = 15.0
"""A move is given up when no row that decodes has come closer to its end for so long: its keys and values come faster
than the link takes them, or nothing comes through it."""


class UnknownSplit(AgentError):
    code = "unknown_split"


class SplitBusy(AgentError):
    code = "split_busy"


class PeerRefused(AgentError):
    code = "peer_refused"


class MoveLate(AgentError):
    code = "move_late"


class Terms(NamedTuple):
    """What of a micro-batch and a model a move needs to know."""

    micro_batch: int
    rows: int
    split: int
    split_points: tuple[int, ...]
    kv_elements: int
    """Of a layer and token."""
    codec: CodecId
    """Element type of the pool."""

    @property
    def element_bytes(self) -> int:
        return 2 if self.codec is CodecId.FP16 else 4


@dataclass(frozen=True, slots=True)
class Slice:
    """Keys and values of some layers: of each row `tokens` tokens from its position on."""

    kind: FrameKind
    layers: LayerRange
    rows: tuple[RowRef, ...]
    tokens: int
    elements: int
    """Of all layers of a token."""
    codec: CodecId
    bytes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.rows), self.tokens, self.elements


@dataclass(slots=True)
class _Move:
    began_s: float
    progress_s: float
    bytes: int = 0


class Handover:
    """At the source: where rows are cut, and where they are to be."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.split = terms.split
        """Of sessions that begin, and of all others once a move is done."""
        points = {terms.split, *terms.split_points}
        self.points = tuple(sorted(points))
        self._here = Ledger(terms.rows, min(points), max(points))
        self._there = Ledger(terms.rows, min(points), max(points))
        self._before = terms.split
        """The split that the present move leaves."""
        self._move: _Move | None = None
        self._slice: Slice | None = None
        self._size = SliceSize()
        self._wanted_s = 0.0
        self._closest: dict[tuple[int, int], int] = {}
        """Per row and generation, fewest bytes that were missing yet."""

    @property
    def is_moving(self) -> bool:
        return self._move is not None

    @property
    def under_way(self) -> Slice | None:
        """The slice that has been taken and is not yet where it is needed."""
        return self._slice

    # --- what is asked for ---

    def begin(self, split: int, sessions: Sequence[Session], now: float) -> None:
        """Raises UnknownSplit and SplitBusy, having changed nothing."""
        if split not in self.points:
            listed = ", ".join(map(str, self.points))
            raise UnknownSplit(
                f"micro-batch {self._terms.micro_batch} cannot be cut at layer {split}, only at {listed}: open it with "
                "that split point"
            )
        present = {session.split for session in sessions if session.position} | {self.split}
        if len(present | {split}) > 2:
            where = " and ".join(map(str, sorted(present)))
            raise SplitBusy(f"micro-batch {self._terms.micro_batch} is cut at {where} now: ask again when it is not")
        if self._move is not None and split == self.split:
            return
        if split != self.split:
            self._before, self.split = self.split, split
        self._move = _Move(now, now)
        self._wanted_s = now
        self._closest.clear()

    def give_up(self, problem: AgentError) -> SplitKept:
        """Rows stay where they are cut, sessions that begin are cut where they were before."""
        asked, self.split = self.split, self._before
        self._move = None
        return SplitKept(self._terms.micro_batch, asked, problem.code, str(problem))

    def finished(self, sessions: Sequence[Session], now: float) -> SplitMoved | None:
        """Whether the move is done: every row is cut where it is to be. Says so once."""
        move = self._move
        if move is None or any(self._is_elsewhere(session) for session in sessions):
            return None
        self._move = None
        self._before = self.split
        return SplitMoved(self._terms.micro_batch, self.split, move.bytes, now - move.began_s)

    def check_late(self, sessions: Sequence[Session], now: float) -> None:
        """Raises MoveLate."""
        move = self._move
        if move is None:
            return
        decoding = [session for session in sessions if self._is_elsewhere(session) and session.is_decoding]
        is_closer = not decoding
        for session in decoding:
            key, missing = (session.row, session.generation), self._missing_bytes(session)
            if missing < self._closest.get(key, missing + 1):
                self._closest[key] = missing
                is_closer = True
        if is_closer:
            move.progress_s = now
        elif now - move.progress_s > MOVE_LATE_S:
            missing = sum(map(self._missing_bytes, decoding))
            raise MoveLate(
                f"{missing} bytes of keys and values were still missing after {now - move.began_s:.0f} s, and no fewer "
                f"for {MOVE_LATE_S:.0f} s: the link is too slow to move the split while sessions run"
            )

    # --- rows ---

    def opened(self, row: int) -> None:
        """A session takes the row."""
        self._here.clear(row)
        self._there.clear(row)

    def ran(self, session: Session) -> None:
        """The session's tokens up to its position are run by both stages, each its layers, before anything later."""
        self._here.ran(session.row, 0, session.split, session.position)
        self._there.ran(session.row, session.split, self.points[-1], session.position)

    def has_room_for_dummy(self, row: int, split: int, position: int) -> bool:
        """A dummy of an idle row may be written at this position in a run of the source's layers up to `split`."""
        return not self._here.lacks(row, 0, split, position)

    def next_split(self, session: Session, sessions: Sequence[Session]) -> int:
        """Where the session's next token leaves the source."""
        may_change = session.position == 0 or self._may_change(session, sessions)
        return self.split if may_change else session.split

    def _may_change(self, session: Session, sessions: Sequence[Session]) -> bool:
        """The session's next token may be run at the new split."""
        if not self._is_elsewhere(session):
            return False
        if not session.is_decoding:
            return self._missing(session) == 0
        return all(self._missing(other) == 0 for other in sessions if self._is_elsewhere(other) and other.is_decoding)

    def waits(self, session: Session, sessions: Sequence[Session]) -> bool:
        """The session decodes and had better wait: its last tokens are on their way, or the next to go."""
        if not self._is_elsewhere(session):
            return False
        decoding = [other for other in sessions if self._is_elsewhere(other) and other.is_decoding]
        missing = [self._missing(other) for other in decoding]
        if max(missing) <= 1:
            return any(missing)
        return self._size.is_known and sum(map(self._missing_bytes, decoding)) <= self._size.bytes

    def _is_elsewhere(self, session: Session) -> bool:
        return self._move is not None and session.split != self.split and session.position > 0

    def _range(self, session: Session) -> LayerRange:
        """Layers that change hands with this session."""
        return LayerRange(min(session.split, self.split), max(session.split, self.split))

    def _ledger(self, session: Session) -> Ledger:
        return self._here if self.split > session.split else self._there

    def _missing(self, session: Session) -> int:
        """Tokens of which some layer's keys and values are not yet where they will be needed."""
        layers = self._range(session)
        return max(0, session.position - self._ledger(session).holds(session.row, layers.start, layers.stop))

    def _missing_bytes(self, session: Session) -> int:
        ledger, layers = self._ledger(session), self._range(session)
        tokens = sum(
            max(0, session.position - ledger.holds(session.row, group.start, group.stop)) * len(group)
            for group in self._groups(layers)
        )
        return tokens * self._terms.kv_elements * self._terms.element_bytes

    def _groups(self, layers: LayerRange) -> list[LayerRange]:
        """Layers whose keys and values of a token fit a frame's shape."""
        most = max(1, MAX_HIDDEN_SIZE // self._terms.kv_elements)
        return [LayerRange(start, min(start + most, layers.stop)) for start in range(layers.start, layers.stop, most)]

    # --- slices ---

    def wanted_since_s(self, sessions: Sequence[Session]) -> float | None:
        """Since when a slice could go, None while none is needed or one is under way."""
        return self._wanted_s if self._next(sessions) is not None else None

    def take(self, sessions: Sequence[Session]) -> Slice:
        """The next slice; it is under way from now on."""
        self._slice = self._next(sessions)
        assert self._slice is not None, "no slice is needed"
        return self._slice

    def _next(self, sessions: Sequence[Session]) -> Slice | None:
        if self._move is None or self._slice is not None:
            return None
        elsewhere = [session for session in sessions if self._is_elsewhere(session)]
        decoding = [session for session in elsewhere if session.is_decoding]
        return self._slice_of(decoding) or self._slice_of([each for each in elsewhere if not each.is_decoding])

    def _slice_of(self, sessions: Sequence[Session]) -> Slice | None:
        """Of the layers that lack most, all that is missing if it fits one slice, else a piece of the row that lacks
        most: whoever decodes lacks a token again after each step."""
        if not sessions:
            return None
        ledger = self._ledger(sessions[0])

        def missing(group: LayerRange) -> dict[int, int]:
            held = {each.row: ledger.holds(each.row, group.start, group.stop) for each in sessions}
            return {each.row: each.position - held[each.row] for each in sessions if held[each.row] < each.position}

        lacks = {group: missing(group) for group in self._groups(self._range(sessions[0]))}
        group = max(lacks, key=lambda each: max(lacks[each].values(), default=0))
        lacking = [session for session in sessions if session.row in lacks[group]]
        if not lacking:
            return None
        budget = self._size.bytes / (len(group) * self._terms.kv_elements * self._terms.element_bytes)
        first = max(lacking, key=lambda session: lacks[group][session.row])
        most = lacks[group][first.row]
        # Frames have as many tokens of each row: of some they have more than is missing, which is harmless.
        if len(lacking) * most <= max(budget, len(lacking)) and all(each.position >= most for each in lacking):
            starts = [(each, each.position - most) for each in lacking]
            return self._slice_from(group, starts, min(most, MAX_TOKENS_PER_ROW))
        tokens = min(most, max(1, int(budget)), MAX_TOKENS_PER_ROW)
        return self._slice_from(group, [(first, first.position - most)], tokens)

    def _slice_from(self, group: LayerRange, starts: Sequence[tuple[Session, int]], tokens: int) -> Slice:
        kind = FrameKind.TAKE if self.split > starts[0][0].split else FrameKind.GIVE
        rows = tuple(RowRef(session.row, session.generation, start) for session, start in starts)
        elements = len(group) * self._terms.kv_elements
        size = len(rows) * tokens * elements * self._terms.element_bytes
        return Slice(kind, group, rows, tokens, elements, self._terms.codec, size)

    def arrived(self, sessions: Sequence[Session], now: float) -> None:
        """The slice under way is where it is needed. Of rows that have another session by now it is forgotten."""
        done, self._slice = self._slice, None
        assert done is not None, "no slice is under way"
        self._wanted_s = now
        ledger = self._here if done.kind is FrameKind.TAKE else self._there
        present = {(session.row, session.generation) for session in sessions}
        for ref in done.rows:
            if (ref.row, ref.generation) in present:
                ledger.copied(ref.row, done.layers.start, done.layers.stop, ref.position + done.tokens)
        if self._move is not None:
            self._move.bytes += done.bytes

    def refused(self, detail: str) -> SplitKept | None:
        """The other device, or this one, could not do its part; None when the move was given up already."""
        self._slice = None
        return None if self._move is None else self.give_up(PeerRefused(detail))

    def timed(self, wire_s: float) -> None:
        """The slice under way was in wires for so long, there and back: from this the next one's size follows."""
        assert self._slice is not None, "no slice is under way"
        self._size.learn(self._slice.bytes, wire_s)
