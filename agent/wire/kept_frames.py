"""What a sender of one hop keeps, and how answers release it: `hop` is its receiver. Sans-IO, the clock is an argument.

Rules
1. A sender keeps every frame until a later frame of the source says that its step is answered, and sends the kept ones
   again, in order, after each reconnect. It keeps at most MAX_KEPT_FRAMES: no more may be in flight.
2. Answers come in step order, each to a frame that is kept and of the kind that it asks for.
"""

from __future__ import annotations

from collections import deque

from agent.errors import FrameRefused, RefusalReason
from agent.wire.codec import HANDING, CodecId, Frame, FrameKind
from agent.wire.hop import MAX_KEPT_FRAMES, Verdict, order_of


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
        if frame.kind not in (FrameKind.ANSWER, FrameKind.HANDED):
            raise FrameRefused(RefusalReason.SHAPE, f"{frame.kind.name} where answers are expected")
        asked = self._outgoing.find(frame.step)
        if asked is None:
            raise FrameRefused(RefusalReason.GAP, f"answer to step {frame.step}, which was not sent")
        if (frame.kind is FrameKind.HANDED) != (asked.kind in HANDING):
            raise FrameRefused(RefusalReason.SHAPE, f"{frame.kind.name} to a {asked.kind.name}")
        if frame.kind is FrameKind.HANDED and frame.codec is not CodecId.NONE:
            self._check_taken(frame, asked)
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

    def _check_taken(self, frame: Frame, asked: Frame) -> None:
        """Keys and values are those that were asked for."""
        same = (frame.rows, frame.start_layer, frame.codec, frame.shape)
        if asked.kind is not FrameKind.TAKE or same != (asked.rows, asked.start_layer, asked.codec, asked.shape):
            raise FrameRefused(
                RefusalReason.SHAPE,
                f"keys and values {frame.shape} from layer {frame.start_layer} on in {frame.codec.name}, "
                f"{asked.kind.name} {asked.shape} from {asked.start_layer} on in {asked.codec.name} was sent",
            )
