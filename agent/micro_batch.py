"""One open micro-batch at one stage: its place on the route, its slots, and what each row holds here. Pure.

Builds the Job for a frame that `hop` accepted, or for the next frame of the token loop, and the frame that carries the
outcome on. It decides nothing about order or retries: that is `hop` and `token_loop`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.effects import Job, Outcome, RowSampling
from agent.errors import AgentError
from agent.token_loop import NextFrame, TokenLoop
from agent.wire import codec
from agent.wire.addresses import StageAddress
from agent.wire.codec import CODEC_IDS, CodecId, Frame, FrameKind, RowRef
from agent.wire.hop import Answers, Incoming, Outgoing
from agent.wire.messages import Opening, OpenMicroBatch
from planner.types import LayerRange

MOST_TOKEN_IDS = 1 << 31
"""Whoever knows the vocabulary says a smaller number."""


class ModelShape(NamedTuple):
    """What a stage has to know about the loaded model."""

    num_layers: int
    hidden_size: int
    slots: int
    context: int
    resident: tuple[LayerRange, ...]
    vocab_size: int = MOST_TOKEN_IDS


MAX_CHUNK_BYTES = 64 << 20
"""A message's part may have as many (`data_plane.DATA_LIMITS`)."""

NOTHING_LOADED = ModelShape(0, 0, 0, 0, ())


@dataclass(slots=True)
class Place:
    """Where a device stands on a route."""

    stages: tuple[StageAddress, ...]
    index: int

    @property
    def is_source(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == len(self.stages) - 1

    @property
    def layers(self) -> LayerRange:
        return LayerRange(self.stages[self.index].start, self.stages[self.index].stop)

    @property
    def next(self) -> StageAddress:
        """The stage that this one's frames go to; behind the last one it is the source."""
        return self.stages[(self.index + 1) % len(self.stages)]

    @property
    def previous(self) -> StageAddress:
        return self.stages[self.index - 1]


def place_of(device: str, opened: OpenMicroBatch, shape: ModelShape) -> Place:
    """Where `device` stands on the route of a micro-batch. Raises AgentError when the route cannot run here."""
    if not shape.resident:
        raise AgentError("nothing is loaded")
    # Epoch 0 is what a refusal names when it cannot say whose frame it refuses.
    if not (0 <= opened.micro_batch <= codec.MAX_MICRO_BATCH and 1 <= opened.epoch <= codec.MAX_EPOCH):
        raise AgentError(
            f"micro-batch {opened.micro_batch} in epoch {opened.epoch}: 0 to {codec.MAX_MICRO_BATCH} in 1 to "
            f"{codec.MAX_EPOCH}"
        )
    where = [i for i, stage in enumerate(opened.stages) if stage.device == device]
    if len(where) != 1:
        raise AgentError(f"route of micro-batch {opened.micro_batch} names {device} {len(where)} times, expected once")
    expected = 0
    for stage in opened.stages:
        if stage.start != expected or stage.stop <= stage.start:
            raise AgentError(
                f"stage {stage.device} runs [{stage.start}, {stage.stop}), expected to start at {expected}"
            )
        expected = stage.stop
    if expected != shape.num_layers:
        raise AgentError(f"route ends at layer {expected}, the model has {shape.num_layers}")
    place = Place(opened.stages, where[0])
    if not any(resident.covers(place.layers) for resident in shape.resident):
        raise AgentError(f"{device}: layers {place.layers} are not resident")
    if not 1 <= opened.rows <= codec.MAX_ROWS:
        raise AgentError(f"{opened.rows} rows, 1 to {codec.MAX_ROWS} possible")
    if not 3 <= opened.chunk <= codec.MAX_TOKENS_PER_ROW:
        raise AgentError(f"prefill chunk of {opened.chunk}, 3 to {codec.MAX_TOKENS_PER_ROW} possible")
    chunk_bytes = codec.payload_bytes(CODEC_IDS[opened.codec], (1, opened.chunk, shape.hidden_size))
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise AgentError(
            f"a prefill chunk of {opened.chunk} tokens in {opened.codec} is {-(-chunk_bytes >> 20)} MiB, "
            f"{MAX_CHUNK_BYTES >> 20} fit a frame: open with shorter chunks"
        )
    return place


RouteKey = tuple[tuple[str, int, int], ...]
"""Device, first layer and end of each stage."""


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
        """Runs that received frames ask for, in step order; at the source there are none."""
        self.first_slot = first_slot
        self.codec = CODEC_IDS[opened.codec]
        self.outgoing = Outgoing()
        self.loop = TokenLoop(opened.rows, opened.chunk, shape.context, shape.vocab_size) if place.is_source else None
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

    def job_for_frame(self, frame: Frame, now: float) -> Job:
        """The run that an accepted frame asks for."""
        assert self.incoming is not None
        return self._job(
            frame,
            self.incoming.idle_position,
            now,
            payload=frame.payload,
            codec=frame.codec,
            shape=frame.shape,
            answered=frame.answered,
            held_us=frame.held_us,
        )

    def job_for_next(self, following: NextFrame, since_s: float) -> Job:
        """The run of the source's own layers for the next frame of its token loop, which could have gone earlier."""
        assert self.loop is not None
        idle = {session.row: session.position for session in self.loop.running()}
        return self._job(
            following,
            lambda row: idle.get(row, 0),
            since_s,
            tokens=following.tokens,
            shape=(len(following.rows), len(following.tokens[0]), self._hidden_size),
            answered=self.loop.answered,
        )

    def _job(
        self, frame: Frame | NextFrame, idle_position: Callable[[int], int], arrived_s: float, **given: Any
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
            layers=self.place.layers,
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
            start_layer=self.place.layers.stop,
            codec=self.codec,
            shape=outcome.shape,
            answered=job.answered,
            held_us=held_us,
            sent_ns=round(now * 1e9),
            payload=outcome.payload,
            openings=job.openings,
        )


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


class SlotRanges:
    """Which slots of the KV pool are reserved: contiguous ranges, first fit."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._reserved: dict[int, range] = {}

    def reserve(self, micro_batch: int, rows: int) -> int:
        """First slot of a free range of `rows` slots. Raises AgentError when there is none."""
        first = 0
        for taken in sorted(self._reserved.values(), key=lambda taken: taken.start):
            if first + rows <= taken.start:
                break
            first = taken.stop
        if first + rows > self._slots:
            raise AgentError(
                f"no {rows} contiguous slots free for micro-batch {micro_batch}, the pool has {self._slots}"
            )
        self._reserved[micro_batch] = range(first, first + rows)
        return first

    def release(self, micro_batch: int) -> None:
        self._reserved.pop(micro_batch, None)
