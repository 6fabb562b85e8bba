"""One hop of one micro-batch: what a receiver accepts (`kept_frames` is its sender). Sans-IO, the clock is an argument.

Rules
1. No more than MAX_KEPT_FRAMES may be in flight.
2. A receiver accepts step `last + 1` only. A step it has seen is a duplicate and is dropped, a later one is a gap.
3. Everything is checked before anything changes: a refused frame leaves no trace.
4. A row's position is this device's own. The wire may only confirm it; an opening sets it to zero and must raise the
   row's generation, so that a late frame of a row's former session cannot touch the present one.
5. Frames of another epoch are refused. A new epoch is a new Incoming and a new Outgoing, never a change of these.
6. Hidden states are for a layer at which the route may be cut, and only once this device has the keys and values of all
   tokens before them, in every layer from there on (`Ledger`).

Everything that decides about order is in the two tables below; docs/protocol.md prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from agent.errors import FrameRefused, RefusalReason
from agent.wire.codec import HANDING, CodecId, Frame, FrameKind, RowRef
from agent.wire.ledger import Ledger
from planner.types import LayerRange

MAX_KEPT_FRAMES = 4
"""At most a decode frame, two prefill chunks and a slice of keys and values are in flight."""
LAST_LAYER = 1 << 30
"""Behind every layer there is."""


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

    def check_held(self, ref: RowRef, tokens: int) -> None:
        """Raises FrameRefused unless the row is at this generation and has come further than these tokens."""
        if ref.row >= len(self._positions):
            raise FrameRefused(RefusalReason.ROW, f"row {ref.row}, the micro-batch has {len(self._positions)}")
        if ref.generation != self._generations[ref.row]:
            stored = self._generations[ref.row]
            raise FrameRefused(RefusalReason.GENERATION, f"row {ref.row} of {ref.generation}, here {stored}")
        if ref.position + tokens > self._positions[ref.row]:
            raise FrameRefused(
                RefusalReason.POSITION,
                f"row {ref.row}: keys and values of {ref.position} + {tokens} tokens, here {self._positions[ref.row]}",
            )

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
    """Receiver half: frames with hidden states from the stage before.

    `split_points` are the layers at which the route may be cut in front of this stage, none where it stays as it is;
    `kv_elements` are a layer's per token. A stage behind such a one passes on what it says (`passes_on`).
    """

    def __init__(
        self,
        *,
        epoch: int,
        rows: int,
        context: int,
        hidden_size: int,
        start_layer: int,
        codec: CodecId,
        split_points: tuple[int, ...] = (),
        kv_elements: int = 0,
        passes_on: bool = False,
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
        self._starts = sorted({start_layer, *split_points})
        self._codec = codec
        self._kv_elements = kv_elements if split_points else 0
        self._passes_on = passes_on
        self._ledger = Ledger(rows, self._starts[0], self._starts[-1])

    def accept(self, frame: Frame, now: float) -> Verdict:
        """ACCEPT moves the rows on; DUPLICATE changes nothing. Raises FrameRefused, having changed nothing."""
        verdict = order_of(frame, self.epoch, self.last)
        if verdict is Verdict.DUPLICATE:
            return verdict
        self._check_window(frame)
        if frame.kind is FrameKind.HANDED:
            self._check_passed_on(frame)
        elif frame.kind in HANDING:
            self._check_handing(frame)
        else:
            self._check_content(frame)
            self.rows.check(frame)
            self._check_ledger(frame)
            self.rows.advance(frame)
            self._advance_ledger(frame)
        self.last = frame.step
        self.answered = frame.answered
        self.heard_at = now
        return verdict

    def idle_position(self, row: int, start_layer: int = LAST_LAYER) -> int | None:
        """See RowTable.idle_position; None where a dummy would come to lie behind a gap in one of the run's layers."""
        position = self.rows.idle_position(row)
        return None if self._ledger.lacks(row, start_layer, LAST_LAYER, position) else position

    def layers_of(self, frame: Frame) -> tuple[int, int]:
        """First layer and end of the keys and values of an accepted GIVE or TAKE."""
        return frame.start_layer, frame.start_layer + frame.shape[2] // self._kv_elements

    def given(self, rows: Sequence[RowRef], layers: LayerRange, tokens: int) -> None:
        """Keys and values of a GIVE have been written. Of rows that have another session by now it is forgotten."""
        for ref in rows:
            if ref.generation == self.rows.generation(ref.row):
                self._ledger.copied(ref.row, layers.start, layers.stop, ref.position + tokens)

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
        if frame.start_layer not in self._starts:
            raise FrameRefused(
                RefusalReason.LAYERS,
                f"hidden states for layer {frame.start_layer}, this stage starts at "
                + " or ".join(map(str, self._starts)),
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

    def _check_ledger(self, frame: Frame) -> None:
        opened = {opening.row for opening in frame.openings}
        for ref in frame.rows:
            if ref.row not in opened and self._ledger.lacks(ref.row, frame.start_layer, LAST_LAYER, ref.position):
                raise FrameRefused(
                    RefusalReason.LAYERS,
                    f"row {ref.row} at position {ref.position} for layer {frame.start_layer} on, of which keys and "
                    "values of tokens before are not here",
                )

    def _advance_ledger(self, frame: Frame) -> None:
        for opening in frame.openings:
            self._ledger.clear(opening.row)
        for ref in frame.rows:
            self._ledger.ran(ref.row, frame.start_layer, LAST_LAYER, ref.position + frame.shape[1])

    def _check_handing(self, frame: Frame) -> None:
        """Of a GIVE or a TAKE."""
        if not self._kv_elements:
            raise FrameRefused(RefusalReason.SHAPE, f"{frame.kind.name} where no layer changes hands")
        start, stop = self.layers_of(frame)
        if frame.shape[2] % self._kv_elements or start < self._starts[0] or stop > self._starts[-1]:
            raise FrameRefused(
                RefusalReason.LAYERS,
                f"{frame.shape[2]} elements of layers from {start} on, layers {self._starts[0]} to "
                f"{self._starts[-1] - 1} with {self._kv_elements} each may change hands",
            )
        for ref in frame.rows:
            self.rows.check_held(ref, frame.shape[1])
            # What is taken must all be here, what is given must leave no gap.
            needed = ref.position + (frame.shape[1] if frame.kind is FrameKind.TAKE else 0)
            if self._ledger.lacks(ref.row, start, stop, needed):
                raise FrameRefused(
                    RefusalReason.LAYERS,
                    f"{frame.kind.name} of row {ref.row} from position {ref.position} on: layers {start} to {stop - 1} "
                    f"have fewer than {needed} tokens here",
                )

    def _check_passed_on(self, frame: Frame) -> None:
        if not self._passes_on:
            raise FrameRefused(RefusalReason.SHAPE, "HANDED where no layer changes hands before")
        for ref in frame.rows:
            if ref.row >= len(self.rows):
                raise FrameRefused(RefusalReason.ROW, f"row {ref.row}, the micro-batch has {len(self.rows)}")
