"""One hop of one micro-batch: what a sender keeps and what a receiver accepts. Sans-IO, the clock is an argument.

Rules
1. A sender keeps every frame until a later frame of the source says that its step is answered, and sends the kept ones
   again, in order, after each reconnect. It keeps at most MAX_KEPT_FRAMES: no more may be in flight.
2. A receiver accepts step `last + 1` only. A step it has seen is a duplicate and is dropped, a later one is a gap.
3. Everything is checked before anything changes: a refused frame leaves no trace.
4. A row's position is this device's own. The wire may only confirm it; an opening sets it to zero and must raise the
   row's generation, so that a late frame of a row's former session cannot touch the present one.
5. Frames of another epoch are refused. A new epoch is a new Incoming and a new Outgoing, never a change of these.

Everything that decides about order is in the two tables below; docs/protocol.md prints them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum

from agent.errors import FrameRefused, RefusalReason
from agent.wire.codec import CodecId, Frame, FrameKind, RowRef

MAX_KEPT_FRAMES = 4
"""At most two prefill chunks are in flight; a chunk, its successor and the frames that release them make four."""


class Verdict(Enum):
    ACCEPT = "accept"
    DUPLICATE = "duplicate"


class StepOrder(Enum):
    """A frame's step against the last one accepted."""

    SEEN = "step ≤ last"
    NEXT = "step = last + 1"
    AHEAD = "step > last + 1"


class RowClaim(Enum):
    """What a frame says of one row against what this device knows of it."""

    OPENS_NEWER = "opens, generation greater"
    OPENS_OLD = "opens, generation not greater"
    CONTINUES_SAME = "continues, generation equal"
    CONTINUES_OTHER = "continues, generation differs"


STEP_TABLE: Mapping[tuple[bool, StepOrder], Verdict | RefusalReason] = {
    # (same epoch, order of the step)
    (True, StepOrder.SEEN): Verdict.DUPLICATE,
    (True, StepOrder.NEXT): Verdict.ACCEPT,
    (True, StepOrder.AHEAD): RefusalReason.GAP,
    (False, StepOrder.SEEN): RefusalReason.EPOCH,
    (False, StepOrder.NEXT): RefusalReason.EPOCH,
    (False, StepOrder.AHEAD): RefusalReason.EPOCH,
}

ROW_TABLE: Mapping[tuple[RowClaim, bool], Verdict | RefusalReason] = {
    # (claim, position as expected: 0 for an opening, the stored next position otherwise)
    (RowClaim.OPENS_NEWER, True): Verdict.ACCEPT,
    (RowClaim.OPENS_NEWER, False): RefusalReason.POSITION,
    (RowClaim.OPENS_OLD, True): RefusalReason.GENERATION,
    (RowClaim.OPENS_OLD, False): RefusalReason.GENERATION,
    (RowClaim.CONTINUES_SAME, True): Verdict.ACCEPT,
    (RowClaim.CONTINUES_SAME, False): RefusalReason.POSITION,
    (RowClaim.CONTINUES_OTHER, True): RefusalReason.GENERATION,
    (RowClaim.CONTINUES_OTHER, False): RefusalReason.GENERATION,
}


def order_of(frame: Frame, epoch: int, last: int) -> Verdict:
    """Look a frame up in STEP_TABLE. Raises FrameRefused with EPOCH or GAP."""
    ahead = frame.step - last
    order = StepOrder.SEEN if ahead <= 0 else StepOrder.NEXT if ahead == 1 else StepOrder.AHEAD
    outcome = STEP_TABLE[frame.epoch == epoch, order]
    if outcome is RefusalReason.EPOCH:
        raise FrameRefused(outcome, f"frame of epoch {frame.epoch}, the micro-batch is in epoch {epoch}")
    if isinstance(outcome, RefusalReason):
        raise FrameRefused(outcome, f"step {frame.step} after step {last}")
    return outcome


class RowTable:
    """Generation and next position of each row of a micro-batch on this device."""

    def __init__(self, rows: int, context: int) -> None:
        self.context = context
        self._generations = [-1] * rows
        self._positions = [0] * rows

    def __len__(self) -> int:
        return len(self._positions)

    def idle_position(self, row: int) -> int:
        """Where a run writes the dummy of a row that no frame named: the device's own next position (0..context)."""
        return self._positions[row]

    def generation(self, row: int) -> int:
        """Generation of the row's session, -1 before the first."""
        return self._generations[row]

    def check(self, frame: Frame) -> None:
        """Raises FrameRefused (ROW, GENERATION, POSITION) unless every row may take the frame's tokens; no change."""
        opened = {opening.row for opening in frame.openings}
        for ref in frame.rows:
            self._check_row(ref, ref.row in opened, tokens=frame.shape[1])

    def advance(self, frame: Frame) -> None:
        """Enter a checked frame: its rows move on by the tokens it carries."""
        for row, generation, position in frame.rows:
            self._generations[row] = generation
            self._positions[row] = position + frame.shape[1]

    def _check_row(self, ref: RowRef, opens: bool, *, tokens: int) -> None:
        row, generation, position = ref
        if row >= len(self._positions):
            raise FrameRefused(RefusalReason.ROW, f"row {row}, the micro-batch has {len(self._positions)}")
        stored = self._generations[row]
        if opens:
            claim = RowClaim.OPENS_NEWER if generation > stored else RowClaim.OPENS_OLD
        else:
            # A row that was never opened has generation -1, which no frame can carry.
            claim = RowClaim.CONTINUES_SAME if generation == stored else RowClaim.CONTINUES_OTHER
        expected = 0 if opens else self._positions[row]
        outcome = ROW_TABLE[claim, position == expected]
        if outcome is RefusalReason.GENERATION:
            raise FrameRefused(outcome, f"row {row} {claim.value}: {generation}, here {stored}")
        if isinstance(outcome, RefusalReason):
            raise FrameRefused(outcome, f"row {row} at position {position}, here {expected}")
        if position + tokens > self.context:
            raise FrameRefused(
                RefusalReason.POSITION,
                f"row {row}: {position} + {tokens} tokens, the context is {self.context}",
            )


class Incoming:
    """Receiver half: frames with hidden states from the stage before."""

    def __init__(
        self, *, epoch: int, rows: int, context: int, hidden_size: int, start_layer: int, codec: CodecId
    ) -> None:
        self.epoch = epoch
        self.rows = RowTable(rows, context)
        self.last = -1
        """Last step accepted."""
        self.answered = -1
        """Highest step the source said it has the answer of."""
        self.heard_at: float | None = None
        """Clock of the last frame accepted."""
        self._hidden_size = hidden_size
        self._start_layer = start_layer
        self._codec = codec

    def accept(self, frame: Frame, now: float) -> Verdict:
        """ACCEPT moves the rows on; DUPLICATE changes nothing. Raises FrameRefused, having changed nothing."""
        verdict = order_of(frame, self.epoch, self.last)
        if verdict is Verdict.DUPLICATE:
            return verdict
        self._check_window(frame)
        self._check_content(frame)
        self.rows.check(frame)
        self.rows.advance(frame)
        self.last = frame.step
        self.answered = frame.answered
        self.heard_at = now
        return verdict

    def idle_position(self, row: int) -> int:
        """See RowTable.idle_position."""
        return self.rows.idle_position(row)

    def _check_window(self, frame: Frame) -> None:
        """Frames in flight are bounded here, so that a peer cannot make this device keep more than it may."""
        if not self.answered <= frame.answered < frame.step:
            raise FrameRefused(
                RefusalReason.GAP,
                f"step {frame.step} says step {frame.answered} is answered, after {self.answered}",
            )
        if frame.step - frame.answered > MAX_KEPT_FRAMES:
            raise FrameRefused(
                RefusalReason.GAP,
                f"{frame.step - frame.answered} frames in flight, at most {MAX_KEPT_FRAMES}",
            )

    def _check_content(self, frame: Frame) -> None:
        if frame.start_layer != self._start_layer:
            raise FrameRefused(
                RefusalReason.LAYERS,
                f"hidden states for layer {frame.start_layer}, this stage starts at {self._start_layer}",
            )
        if frame.kind not in (FrameKind.PREFILL, FrameKind.DECODE):
            raise FrameRefused(RefusalReason.SHAPE, f"{frame.kind.name} carries no hidden states")
        if frame.codec is not self._codec:
            raise FrameRefused(
                RefusalReason.SHAPE, f"codec {frame.codec.name}, the micro-batch uses {self._codec.name}"
            )
        if frame.shape[2] != self._hidden_size or frame.shape[1] < 1 or frame.shape[0] != len(frame.rows):
            raise FrameRefused(
                RefusalReason.SHAPE,
                f"{frame.shape} for {len(frame.rows)} rows of hidden size {self._hidden_size}",
            )


class Outgoing:
    """Sender half: frames (or, at the last stage, answers) that may have to be sent again."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Frame, float]] = deque()
        self._last = -1

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def last(self) -> int:
        """Last step kept, -1 before the first."""
        return self._last

    @property
    def is_full(self) -> bool:
        """No frame may be sent until an answer releases one."""
        return len(self._kept) >= MAX_KEPT_FRAMES

    def keep(self, frame: Frame, now: float) -> None:
        """Keep a frame before it is sent. Raises ValueError out of order or when MAX_KEPT_FRAMES are kept: our bug."""
        if frame.step != self._last + 1:
            raise ValueError(f"step {frame.step} is to be sent after step {self._last}")
        if self.is_full:
            raise ValueError(f"{len(self._kept)} frames are in flight already, at most {MAX_KEPT_FRAMES}")
        self._kept.append((frame, now))
        self._last = frame.step

    def release(self, answered: int) -> None:
        """Forget frames up to the answered step."""
        while self._kept and self._kept[0][0].step <= answered:
            self._kept.popleft()

    def find(self, step: int) -> Frame | None:
        """The kept frame of a step, if it is still kept."""
        return next((frame for frame, _ in self._kept if frame.step == step), None)

    def unanswered(self) -> list[Frame]:
        """What has to be sent again after a reconnect, in order."""
        return [frame for frame, _ in self._kept]

    def oldest_age_s(self, now: float) -> float:
        """Age of the oldest kept frame, 0.0 without one. Only the source's is an answer's lateness: the other stages
        learn of the last answer with the next frame, which may never come."""
        return now - self._kept[0][1] if self._kept else 0.0


class Answers:
    """The source's end of the ring: answers in step order, each to a frame it keeps."""

    def __init__(self, epoch: int, outgoing: Outgoing) -> None:
        self.epoch = epoch
        self.last = -1
        """Highest step answered: the `answered` of the next frame."""
        self.heard_at: float | None = None
        """Clock of the last answer accepted."""
        self._outgoing = outgoing

    def accept(self, frame: Frame, now: float) -> Verdict:
        """ACCEPT releases the answered frame. Raises FrameRefused (EPOCH, GAP, ROW, SHAPE), having changed nothing."""
        verdict = order_of(frame, self.epoch, self.last)
        if verdict is Verdict.DUPLICATE:
            return verdict
        if frame.kind is not FrameKind.ANSWER:
            raise FrameRefused(RefusalReason.SHAPE, f"{frame.kind.name} where answers are expected")
        asked = self._outgoing.find(frame.step)
        if asked is None:
            raise FrameRefused(RefusalReason.GAP, f"answer to step {frame.step}, which was not sent")
        sent = {(ref.row, ref.generation) for ref in asked.rows}
        for ref in frame.rows:
            if (ref.row, ref.generation) not in sent:
                raise FrameRefused(
                    RefusalReason.ROW,
                    f"answer for row {ref.row} generation {ref.generation}, which step {frame.step} did not carry",
                )
        self._outgoing.release(frame.step)
        self.last = frame.step
        self.heard_at = now
        return verdict
