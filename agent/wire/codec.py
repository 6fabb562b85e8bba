"""Data frames and their bytes: [header, payload] and a third part when sessions open. Sans-IO.

Rules
1. Bytes from outside are accepted whole or raise FrameRefused; no other exception leaves this module.
2. The header is one MessagePack array in fixed order. Its last element is the CRC-32C (RFC 3720 appendix B.4) of the
   header without it, the payload and the openings, always in MessagePack's five-byte uint32 form.
3. Every number is checked against a named limit before anything is computed from it.
4. The payload of hidden states has exactly the length that codec and shape give. This module never looks inside.

Layout and meaning of each field: docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import msgpack
import msgspec

from agent.errors import FrameRefused, RefusalReason
from agent.wire.messages import PROTOCOL_VERSION, Opening
from planner.types import Codec

MAX_HEADER_BYTES = 256
"""16 rows of at most 10 bytes, and 13 other fields; the header of one row is about 50 bytes."""
MAX_ROWS = 16
MAX_OPENINGS_BYTES = 4096
"""16 openings with the default parameters, or one with the 300 logit biases the API allows."""
MAX_ANSWER_BYTES = 16 << 10
"""16 rows with 20 alternatives each at 14 bytes, twice over."""
MAX_TOKENS_PER_ROW = 4096
"""Longest prefill chunk; the default is 128."""
MAX_HIDDEN_SIZE = 65536
MAX_LAYERS = 1024
MAX_POSITION = 1 << 24
MAX_GENERATION = (1 << 32) - 1
MAX_STEP = (1 << 31) - 1
MAX_MICRO_BATCH = (1 << 31) - 1
MAX_EPOCH = (1 << 63) - 1
MAX_TIME = (1 << 63) - 1

Buffer = bytes | bytearray | memoryview
Checksum = Callable[[Buffer, int], int]
"""crc32c(data, seed): injected, so that wire does not depend on the kernels."""


class FrameKind(IntEnum):
    PREFILL = 1
    DECODE = 2
    ANSWER = 3
    REFUSAL = 4
    PING = 5
    PONG = 6


class CodecId(IntEnum):
    """Wire number of each codec; the names are `planner.types.Codec`."""

    NONE = 0
    FP32 = 1
    FP16 = 2
    BF16 = 3
    INT8 = 4


CODEC_IDS: dict[Codec, CodecId] = {
    "fp32": CodecId.FP32,
    "fp16": CodecId.FP16,
    "bf16": CodecId.BF16,
    "int8": CodecId.INT8,
}


class RowRef(NamedTuple):
    """A row of the micro-batch and where it stands: `position` tokens came before this frame's."""

    row: int
    generation: int
    position: int


class Answered(NamedTuple):
    """What the last stage chose for one row."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One data frame. `shape` is (rows, tokens per row, hidden size), zeros where there are no hidden states."""

    kind: FrameKind
    micro_batch: int
    epoch: int
    step: int
    rows: tuple[RowRef, ...] = ()
    sample: bool = False
    """The last stage samples after this frame: decode, and the last chunk of a prefill."""
    start_layer: int = 0
    codec: CodecId = CodecId.NONE
    shape: tuple[int, int, int] = (0, 0, 0)
    answered: int = -1
    """Highest step of which the source has the answer: frames up to it need not be kept any longer."""
    held_us: int = 0
    """Time this step spent in the stages behind the source so far, in microseconds."""
    sent_ns: int = 0
    """CLOCK_MONOTONIC of the sender; comparable inside one boot id only."""
    payload: Buffer = b""
    openings: tuple[Opening, ...] = ()


def payload_bytes(codec: CodecId, shape: tuple[int, int, int]) -> int:
    """Exact payload length of hidden states; int8 carries one fp32 scale per token behind the elements."""
    rows, tokens, hidden = shape
    elements = rows * tokens * hidden
    match codec:
        case CodecId.FP32:
            return 4 * elements
        case CodecId.FP16 | CodecId.BF16:
            return 2 * elements
        case CodecId.INT8:
            return elements + 4 * rows * tokens
        case CodecId.NONE:
            return 0


def encode(frame: Frame, crc32c: Checksum) -> list[Buffer]:
    """A frame as message parts, checksum filled in."""
    fields = [
        PROTOCOL_VERSION,
        int(frame.kind),
        frame.micro_batch,
        frame.epoch,
        frame.step,
        frame.rows,
        frame.sample,
        frame.start_layer,
        int(frame.codec),
        frame.shape,
        frame.answered + 1,
        frame.held_us,
        frame.sent_ns,
    ]
    # An array of 14 (0x9e) whose last element follows as 0xce and four bytes.
    head = b"\x9e" + b"".join(msgpack.packb(value) for value in fields)
    parts: list[Buffer] = [head, frame.payload]
    if frame.openings:
        parts.append(msgpack.packb([msgspec.to_builtins(o) for o in frame.openings]))
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    parts[0] = head + b"\xce" + crc.to_bytes(4, "big")
    return parts


def decode(parts: Sequence[Buffer], crc32c: Checksum) -> Frame:
    """Message parts to a checked frame; the payload is the part itself, not a copy. Raises FrameRefused."""
    if not 2 <= len(parts) <= 3:
        raise FrameRefused(RefusalReason.HEADER, f"{len(parts)} message parts, 2 or 3 expected")
    head = bytes(parts[0])
    if not 7 <= len(head) <= MAX_HEADER_BYTES:
        raise FrameRefused(RefusalReason.HEADER, f"{len(head)} bytes, at most {MAX_HEADER_BYTES}")
    if head[0] & 0xF0 != 0x90:
        raise FrameRefused(RefusalReason.HEADER, "not a MessagePack array")
    # The version stands first and is read before the rest, whose layout depends on it.
    if head[1] != PROTOCOL_VERSION:
        raise FrameRefused(
            RefusalReason.VERSION,
            f"peer speaks protocol version {head[1]}, this device {PROTOCOL_VERSION}",
        )
    crc = crc32c(head[:-5], 0)
    for part in parts[1:]:
        crc = crc32c(part, crc)
    if head[-5:] != b"\xce" + crc.to_bytes(4, "big"):
        raise FrameRefused(RefusalReason.CRC, f"computed {crc:08x}, frame says {head[-4:].hex()}")
    frame = _header(head, parts[1])
    openings = _openings(parts[2], frame.rows) if len(parts) == 3 else ()
    _check_payload(frame)
    if not openings:
        return frame
    return Frame(**{**{name: getattr(frame, name) for name in Frame.__slots__}, "openings": openings})


def encode_answers(answers: Sequence[Answered]) -> bytes:
    """Payload of an ANSWER frame, one entry per row in the order of the header's rows."""
    packed: bytes = msgpack.packb([[a.token, a.logprob, a.top] for a in answers])
    return packed


def decode_answers(payload: Buffer) -> tuple[Answered, ...]:
    """Raises FrameRefused when the payload is not a list of [token, log-probability or nil, alternatives]."""
    try:
        raw = msgpack.unpackb(payload, max_array_len=64, max_map_len=0, max_str_len=0, max_bin_len=0)
        return tuple(
            Answered(*msgspec.convert(entry, type=tuple[int, float | None, tuple[tuple[int, float], ...]]))
            for entry in raw
        )
    except Exception as problem:
        raise FrameRefused(RefusalReason.PAYLOAD, f"answers: {problem}") from problem


def encode_refusal(refused: FrameRefused) -> bytes:
    """Payload of a REFUSAL frame."""
    packed: bytes = msgpack.packb([refused.reason.value, refused.detail[:1024]])
    return packed


def decode_refusal(payload: Buffer) -> FrameRefused:
    """The peer's refusal as an error to raise or report; a malformed one is reported as such."""
    try:
        reason, detail = msgspec.convert(
            msgpack.unpackb(payload, max_array_len=2, max_str_len=8192), type=tuple[str, str]
        )
        return FrameRefused(RefusalReason(reason), detail)
    except Exception as problem:
        return FrameRefused(RefusalReason.PAYLOAD, f"refusal: {problem}")


def _header(head: bytes, payload: Buffer) -> Frame:
    try:
        raw = msgpack.unpackb(
            head, use_list=False, max_array_len=MAX_ROWS, max_map_len=0, max_str_len=0, max_bin_len=0, max_ext_len=0
        )
    except Exception as problem:  # msgpack raises ValueError and its own types
        raise FrameRefused(RefusalReason.HEADER, f"not MessagePack within limits: {problem}") from problem
    if len(raw) != 14:
        raise FrameRefused(RefusalReason.HEADER, f"{len(raw)} fields, 14 expected")
    _, kind, micro_batch, epoch, step, rows, sample, start_layer, codec, shape, answered, held_us, sent_ns, _ = raw
    try:
        return Frame(
            kind=FrameKind(_integer("kind", kind, 255)),
            micro_batch=_integer("micro_batch", micro_batch, MAX_MICRO_BATCH),
            epoch=_integer("epoch", epoch, MAX_EPOCH),
            step=_integer("step", step, MAX_STEP),
            rows=_rows(rows),
            sample=_boolean("sample", sample),
            start_layer=_integer("start_layer", start_layer, MAX_LAYERS),
            codec=CodecId(_integer("codec", codec, 255)),
            shape=_shape(shape),
            answered=_integer("answered", answered, MAX_STEP + 1) - 1,
            held_us=_integer("held_us", held_us, MAX_TIME),
            sent_ns=_integer("sent_ns", sent_ns, MAX_TIME),
            payload=payload,
        )
    except ValueError as problem:  # an unknown kind or codec
        raise FrameRefused(RefusalReason.HEADER, str(problem)) from problem


def _integer(name: str, value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise FrameRefused(RefusalReason.HEADER, f"{name} is {value!r:.40}, an integer in 0..{limit} expected")
    return value


def _boolean(name: str, value: object) -> bool:
    if type(value) is not bool:
        raise FrameRefused(RefusalReason.HEADER, f"{name} is {value!r:.40}, true or false expected")
    return value


def _rows(rows: object) -> tuple[RowRef, ...]:
    if type(rows) is not tuple or len(rows) > MAX_ROWS:
        raise FrameRefused(RefusalReason.ROW, f"at most {MAX_ROWS} rows expected")
    refs: list[RowRef] = []
    for entry in rows:
        if type(entry) is not tuple or len(entry) != 3:
            raise FrameRefused(RefusalReason.ROW, "row, generation and position expected")
        ref = RowRef(
            _integer("row", entry[0], MAX_ROWS - 1),
            _integer("generation", entry[1], MAX_GENERATION),
            _integer("position", entry[2], MAX_POSITION),
        )
        if refs and ref.row <= refs[-1].row:
            raise FrameRefused(RefusalReason.ROW, f"row {ref.row} after row {refs[-1].row}, ascending expected")
        refs.append(ref)
    return tuple(refs)


def _shape(shape: object) -> tuple[int, int, int]:
    if type(shape) is not tuple or len(shape) != 3:
        raise FrameRefused(RefusalReason.SHAPE, "three dimensions expected")
    rows, tokens, hidden = shape
    return (
        _integer("rows", rows, MAX_ROWS),
        _integer("tokens", tokens, MAX_TOKENS_PER_ROW),
        _integer("hidden", hidden, MAX_HIDDEN_SIZE),
    )


def _openings(part: Buffer, rows: tuple[RowRef, ...]) -> tuple[Opening, ...]:
    if len(part) > MAX_OPENINGS_BYTES:
        raise FrameRefused(RefusalReason.PAYLOAD, f"openings of {len(part)} bytes, at most {MAX_OPENINGS_BYTES}")
    try:
        raw = msgpack.unpackb(part, strict_map_key=True, max_array_len=1024, max_map_len=32, max_str_len=64)
        openings = msgspec.convert(raw, type=tuple[Opening, ...])
    except Exception as problem:
        raise FrameRefused(RefusalReason.PAYLOAD, f"openings: {problem}") from problem
    named = {(ref.row, ref.generation) for ref in rows}
    for opening in openings:
        if (opening.row, opening.generation) not in named:
            raise FrameRefused(RefusalReason.ROW, f"opening of row {opening.row}, which the frame does not carry")
    return openings


def _check_payload(frame: Frame) -> None:
    size = len(frame.payload)
    match frame.kind:
        case FrameKind.PREFILL | FrameKind.DECODE:
            if frame.codec is CodecId.NONE or 0 in frame.shape or frame.shape[0] != len(frame.rows):
                raise FrameRefused(RefusalReason.SHAPE, f"{frame.shape} for {len(frame.rows)} rows")
            if frame.kind is FrameKind.DECODE and frame.shape[1] != 1:
                raise FrameRefused(RefusalReason.SHAPE, f"decode of {frame.shape[1]} tokens per row")
            if frame.kind is FrameKind.PREFILL and len(frame.rows) != 1:
                raise FrameRefused(RefusalReason.SHAPE, f"prefill of {len(frame.rows)} rows")
            expected = payload_bytes(frame.codec, frame.shape)
            if size != expected:
                raise FrameRefused(RefusalReason.PAYLOAD, f"{size} bytes, shape {frame.shape} needs {expected}")
        case FrameKind.ANSWER:
            if size > MAX_ANSWER_BYTES:
                raise FrameRefused(RefusalReason.PAYLOAD, f"answer of {size} bytes, at most {MAX_ANSWER_BYTES}")
        case FrameKind.REFUSAL:
            if size > MAX_OPENINGS_BYTES:
                raise FrameRefused(RefusalReason.PAYLOAD, f"refusal of {size} bytes, at most {MAX_OPENINGS_BYTES}")
        case FrameKind.PING | FrameKind.PONG:
            if size:
                raise FrameRefused(RefusalReason.PAYLOAD, f"{size} bytes in a ping")
