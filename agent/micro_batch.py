"""One open micro-batch at one stage: its place on the route, its slots, and what each row holds here. Pure.

Builds the Job for a frame that `hop` accepted, or for the next frame of the token loop, and the frame that carries the
outcome on. It decides nothing about order or retries: that is `hop` and `token_loop`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent.compute.executor import IDLE
from agent.effects import Hands, Job, Outcome, RowSampling
from agent.errors import FrameRefused, RefusalReason
from agent.handover import Handover, Slice, Terms
from agent.place import ModelShape, Place
from agent.token_loop import NextFrame, TokenLoop
from agent.wire import codec
from agent.wire.codec import CODEC_IDS, HANDING, CodecId, Frame, FrameKind, RowRef
from agent.wire.hop import Incoming, Verdict
from agent.wire.kept_frames import Answers, Outgoing
from agent.wire.messages import Opening, OpenMicroBatch
from planner.types import LayerRange

RouteKey = tuple[tuple[str, int, int], ...]
"""Device, first layer and end of each stage."""


_HANDS = {FrameKind.GIVE: Hands.WRITE, FrameKind.TAKE: Hands.READ, FrameKind.HANDED: Hands.PASS}
"""What a received frame of keys and values asks of a stage behind the source."""


class MicroBatch:
    """State of one micro-batch at one stage."""

    def __init__(self, opened: OpenMicroBatch, place: Place, shape: ModelShape, first_slot: int) -> None:
        self.id = opened.micro_batch
        self.epoch = opened.epoch
        self.rows = opened.rows
        self.chunk = opened.chunk
        self.place = place
        self.route: RouteKey = tuple((stage.device, stage.start, stage.stop) for stage in place.stages)
        self.pipeline = opened.pipeline
        self.queue: deque[Job] = deque()
        """Runs that received frames ask for, in step order; at the source only keys and values to be written."""
        self.first_slot = first_slot
        self.codec = CODEC_IDS[opened.codec]
        self.outgoing = Outgoing()
        self.loop = (
            TokenLoop(opened.rows, opened.chunk, shape.context, shape.vocab_size, _handover(opened, place, shape))
            if place.is_source
            else None
        )
        self.answers = Answers(opened.epoch, self.outgoing) if place.is_source else None
        self.incoming = (
            None
            if place.is_source
            else Incoming(
                epoch=opened.epoch,
                rows=opened.rows,
                context=shape.context,
                hidden_size=shape.hidden_size,
                start_layer=place.layers.start,
                codec=self.codec,
                split_points=opened.split_points if place.index == 1 else (),
                kv_elements=shape.kv_elements,
                passes_on=bool(opened.split_points) and place.index > 1,
            )
        )
        self.previous_origin: bytes | None = None
        """Connection on which the predecessor's frames come; refusals go back on it."""
        self.broken: str | None = None
        self.sent_s: dict[int, float] = {}
        """At the source: when each unanswered step left."""
        self._hidden_size = shape.hidden_size
        self._choosers: dict[int, RowSampling] = {}

    @property
    def is_solo(self) -> bool:
        return self.place.is_source and self.place.is_last

    def accept(self, frame: Frame, now: float) -> Verdict:
        """Enter a frame of the stage before. Raises FrameRefused, having changed nothing."""
        assert self.incoming is not None
        if frame.shape[1] > self.chunk and frame.kind not in HANDING:
            # There is memory for what was agreed on, in the buffers and for the frames that are kept.
            raise FrameRefused(RefusalReason.SHAPE, f"chunk of {frame.shape[1]} tokens, at most {self.chunk}")
        if frame.answered > self.outgoing.last:
            # The window of frames in flight moves with what is answered: a sender who lies would fill the queue.
            raise FrameRefused(RefusalReason.GAP, f"step {frame.answered} cannot be answered, it is still here")
        verdict = self.incoming.accept(frame, now)
        self.outgoing.release(frame.answered)
        return verdict

    def job_for_frame(self, frame: Frame, now: float) -> Job:
        """The run that an accepted frame asks for."""
        assert self.incoming is not None
        if frame.kind in HANDING:
            start, stop = frame.start_layer, frame.start_layer + 1
            if frame.kind is not FrameKind.HANDED:
                start, stop = self.incoming.layers_of(frame)
            return self._handing(frame, _HANDS[frame.kind], LayerRange(start, stop), now)
        layers = LayerRange(frame.start_layer, self.place.layers.stop)
        return self._job(
            frame,
            layers,
            lambda row: self._idle_behind(row, layers.start),
            now,
            payload=frame.payload,
            codec=frame.codec,
            shape=frame.shape,
            answered=frame.answered,
            held_us=frame.held_us,
        )

    def _idle_behind(self, row: int, start_layer: int) -> int:
        assert self.incoming is not None
        position = self.incoming.idle_position(row, start_layer)
        return IDLE if position is None else position

    def _handing(self, frame: Frame, hands: Hands, layers: LayerRange, arrived_s: float) -> Job:
        """What a frame of keys and values asks for."""
        return Job(
            kind=frame.kind,
            micro_batch=self.id,
            epoch=self.epoch,
            step=frame.step,
            rows=frame.rows,
            sample=False,
            layers=layers,
            first_slot=self.first_slot,
            positions=tuple(ref.position for ref in frame.rows),
            active=tuple(range(len(frame.rows))),
            payload=frame.payload,
            codec=frame.codec,
            shape=frame.shape,
            answered=frame.answered,
            held_us=frame.held_us,
            arrived_s=arrived_s,
            hands=hands,
        )

    def job_for_slice(self, following: NextFrame, since_s: float) -> Job:
        """At the source: read what is to be given; of what is to be taken only the question goes."""
        assert self.loop is not None
        taken = following.slice
        assert taken is not None
        frame = Frame(
            taken.kind,
            self.id,
            self.epoch,
            following.step,
            taken.rows,
            start_layer=taken.layers.start,
            codec=taken.codec,
            shape=taken.shape,
            answered=self.loop.answered,
        )
        return self._handing(frame, Hands.READ if taken.kind is FrameKind.GIVE else Hands.PASS, taken.layers, since_s)

    def job_to_write(self, taken: Slice, frame: Frame, now: float) -> Job:
        """At the source: write what has come, but not over sessions that have taken rows meanwhile."""
        assert self.loop is not None
        present = {(session.row, session.generation) for session in self.loop.running()}
        active = tuple(i for i, ref in enumerate(frame.rows) if (ref.row, ref.generation) in present)
        return replace(self._handing(frame, Hands.WRITE, taken.layers, now), active=active)

    def job_for_next(self, following: NextFrame, since_s: float) -> Job:
        """The run of the source's own layers for the next frame of its token loop, which could have gone earlier."""
        assert self.loop is not None
        if following.slice is not None:
            return self.job_for_slice(following, since_s)
        layers = LayerRange(0, following.split or self.place.layers.stop)
        return self._job(
            following,
            layers,
            self._idle_here(layers),
            since_s,
            tokens=following.tokens,
            shape=(len(following.rows), len(following.tokens[0]), self._hidden_size),
            answered=self.loop.answered,
        )

    def _idle_here(self, layers: LayerRange) -> Callable[[int], int]:
        assert self.loop is not None
        idle = {session.row: session.position for session in self.loop.running()}
        handover = self.loop.handover

        def position(row: int) -> int:
            at = idle.get(row, 0)
            return at if handover is None or handover.has_room_for_dummy(row, layers.stop, at) else IDLE

        return position

    def _job(
        self,
        frame: Frame | NextFrame,
        layers: LayerRange,
        idle_position: Callable[[int], int],
        arrived_s: float,
        **given: Any,
    ) -> Job:
        """What the runs of a received and of the source's own frame have in common; `given` is the rest."""
        self._open_rows(frame.openings)
        first, positions, active = _covering(frame.rows, idle_position)
        is_last = self.place.is_last
        return Job(
            kind=frame.kind,
            micro_batch=self.id,
            epoch=self.epoch,
            step=frame.step,
            rows=frame.rows,
            sample=frame.sample,
            layers=layers,
            first_slot=self.first_slot + first,
            positions=positions,
            active=active,
            outgoing=CodecId.NONE if is_last else self.codec,
            choosers=self._choosers_of(frame.rows) if frame.sample and is_last else (),
            openings=frame.openings,
            arrived_s=arrived_s,
            channel=self.place.stages[self.place.index].channel,
            **given,
        )

    def _open_rows(self, openings: tuple[Opening, ...]) -> None:
        if self.place.is_last:
            for opening in openings:
                self._choosers[opening.row] = RowSampling(opening.sampling)

    def _choosers_of(self, rows: tuple[RowRef, ...]) -> tuple[RowSampling, ...]:
        return tuple(self._choosers[ref.row] for ref in rows)

    def frame_after(self, job: Job, outcome: Outcome, now: float) -> Frame:
        """The frame that carries an outcome to the next stage, or the last stage's answer to the source."""
        held_us = 0 if self.place.is_source else job.held_us + round((now - job.arrived_s) * 1e6)
        if job.hands is not None:
            return self._frame_after_handing(job, outcome, held_us, now)
        if self.place.is_last:
            return Frame(
                kind=FrameKind.ANSWER,
                micro_batch=self.id,
                epoch=self.epoch,
                step=job.step,
                rows=job.rows,
                sample=job.sample,
                answered=job.answered,
                held_us=held_us,
                sent_ns=round(now * 1e9),
                payload=codec.encode_answers(outcome.answers),
            )
        return Frame(
            kind=job.kind,
            micro_batch=self.id,
            epoch=self.epoch,
            step=job.step,
            rows=job.rows,
            sample=job.sample,
            start_layer=job.layers.stop,
            codec=self.codec,
            shape=outcome.shape,
            answered=job.answered,
            held_us=held_us,
            sent_ns=round(now * 1e9),
            payload=outcome.payload,
            openings=job.openings,
        )

    def _frame_after_handing(self, job: Job, outcome: Outcome, held_us: int, now: float) -> Frame:
        asks = self.place.is_source
        payload = codec.encode_refusal(refusal_of(outcome)) if outcome.refused else outcome.payload
        has_shape = asks or bool(outcome.shape[0])
        return Frame(
            kind=job.kind if asks else FrameKind.HANDED,
            micro_batch=self.id,
            epoch=self.epoch,
            step=job.step,
            rows=job.rows,
            start_layer=job.layers.start,
            codec=job.codec if has_shape else CodecId.NONE,
            shape=job.shape if has_shape else (0, 0, 0),
            answered=job.answered,
            held_us=held_us,
            sent_ns=round(now * 1e9),
            payload=payload,
        )


def refusal_of(outcome: Outcome) -> FrameRefused:
    """Why keys and values do not change hands, as it travels."""
    return FrameRefused(RefusalReason.COMPUTE, outcome.refused[: codec.MAX_DETAIL])


def _handover(opened: OpenMicroBatch, place: Place, shape: ModelShape) -> Handover | None:
    if not opened.split_points:
        return None
    terms = Terms(opened.micro_batch, opened.rows, place.split, opened.split_points, shape.kv_elements, shape.kv_codec)
    return Handover(terms)


def _covering(
    rows: tuple[RowRef, ...], idle_position: Callable[[int], int]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The smallest range that holds `rows` (ascending): its first row, a position per row, the index of each of `rows`.

    An idle row inside the range computes a dummy at its own next position, where its next token will overwrite it.
    """
    first = rows[0].row
    held = {ref.row: ref.position for ref in rows}
    positions = tuple(held[row] if row in held else idle_position(row) for row in range(first, rows[-1].row + 1))
    return first, positions, tuple(ref.row - first for ref in rows)
