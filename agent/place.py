"""Where a device stands on a route, what it has to have there, and which slots of its KV pool are taken. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.errors import AgentError
from agent.wire import codec
from agent.wire.addresses import StageAddress
from agent.wire.codec import CODEC_IDS, CodecId
from agent.wire.messages import OpenMicroBatch
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
    kv_elements: int = 0
    """Keys and values of one token in one layer; 0 where they are nobody's business."""
    kv_codec: CodecId = CodecId.FP32
    """What they are stored as."""


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

    @property
    def split(self) -> int:
        """Where the source's part ends."""
        return self.stages[0].stop


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
    needed = _needed(place, opened.split_points)
    if opened.split_points and not 0 < shape.kv_elements <= codec.MAX_HIDDEN_SIZE:
        raise AgentError(f"{device}: keys and values of what is loaded here cannot change hands")
    if not any(resident.covers(needed) for resident in shape.resident):
        raise AgentError(f"{device}: layers {needed} are not resident")
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


def _needed(place: Place, split_points: tuple[int, ...]) -> LayerRange:
    """Layers that a device may have to run. Raises AgentError for a split point where the route cannot be cut."""
    layers = place.layers
    if not split_points:
        return layers
    if len(place.stages) < 2:
        raise AgentError(f"split points {_listed(split_points)} on a route of one device, which is not split")
    behind = place.stages[1]
    wrong = [point for point in split_points if not 0 < point < behind.stop]
    if wrong:
        raise AgentError(
            f"split points {_listed(wrong)} do not lie between {place.stages[0].device} and {behind.device}: "
            f"1 to {behind.stop - 1} do"
        )
    if place.index == 0:
        return LayerRange(0, max(layers.stop, *split_points))
    return LayerRange(min(layers.start, *split_points), layers.stop) if place.index == 1 else layers


def _listed(points: Sequence[int]) -> str:
    return ", ".join(map(str, points))


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
