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

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from agent.errors import FrameRefused, RefusalReason
from agent.wire.messages import PROTOCOL_VERSION, Opening
from planner.types import Codec

MAX_HEADER_BYTES = 256
"""16 rows of 12 bytes and everything else at its largest make exactly this; one row usually takes about 50 bytes."""
MAX_ROWS = 16
MAX_OPENINGS_BYTES = 8192
"""16 openings with the default parameters, or one with the 300 logit biases the API allows, 15 bytes each."""
MAX_ANSWER_BYTES = 16 << 10
"""16 rows with 20 alternatives each at 14 bytes, twice over."""
MAX_DETAIL = 1024
"""Characters of a refusal's detail: at most 4096 bytes of UTF-8, less than MAX_REFUSAL_BYTES."""
MAX_REFUSAL_BYTES = 8192
MAX_TOKENS_PER_ROW = 4096
"""Longest prefill chunk; the default is 128."""
MAX_HIDDEN_SIZE = 65536
MAX_SLICE_BYTES = 4 << 20
"""Keys and values of one token of 16 rows at their widest, in fp32. To ask for them (TAKE) costs nothing."""
MAX_LAYERS = 1024
MAX_POSITION = 1 << 24
MAX_GENERATION = (1 << 32) - 1
MAX_STEP = (1 << 31) - 1
MAX_MICRO_BATCH = (1 << 31) - 1
MAX_EPOCH = (1 << 63) - 1
MAX_TIME_NS = (1 << 63) - 1
MAX_HELD_US = (1 << 32) - 1
"""71 minutes: an answer is late after ten seconds."""

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
    PROBE = 7
    GIVE = 8
    """Keys and values for the stage behind the source, which is to run the layers that they are of."""
    TAKE = 9
    """Asks it for those of layers that the source is to run."""
    HANDED = 10
    """What became of one of the two: from that stage on to the source, through the others."""


HANDING = frozenset({FrameKind.GIVE, FrameKind.TAKE, FrameKind.HANDED})
"""Kinds that carry keys and values; their shape is (rows, tokens per row, elements of all layers of a token)."""


class CodecId(IntEnum):
    """Wire number of each codec; the names are `planner.types.Codec`."""

    NONE = 0
    FP32 = 1
    FP16 = 2
    BF16 = 3
    INT8 = 4
    INT4 = 5


CODEC_IDS: dict[Codec, CodecId] = {
    "fp32": CodecId.FP32,
    "fp16": CodecId.FP16,
    "bf16": CodecId.BF16,
    "int8": CodecId.INT8,
    "int4": CodecId.INT4,
}
INT4_GROUP = 32
"""Elements of a token that share a scale in int4."""


class RowRef(NamedTuple):
    """A row of the micro-batch and where it stands: `position` tokens came before this frame's."""

    row: Annotated[int, Meta(ge=0, le=MAX_ROWS - 1)]
    generation: Annotated[int, Meta(ge=0, le=MAX_GENERATION)]
    position: Annotated[int, Meta(ge=0, le=MAX_POSITION)]


class Answered(NamedTuple):
    """What the last stage chose for one row."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Frame(msgspec.Struct, frozen=True):
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


_Header = tuple[
    Annotated[int, Meta(ge=PROTOCOL_VERSION, le=PROTOCOL_VERSION)],
    FrameKind,
    Annotated[int, Meta(ge=0, le=MAX_MICRO_BATCH)],
    Annotated[int, Meta(ge=0, le=MAX_EPOCH)],
    Annotated[int, Meta(ge=0, le=MAX_STEP)],
    Annotated[tuple[RowRef, ...], Meta(max_length=MAX_ROWS)],
    bool,
    Annotated[int, Meta(ge=0, le=MAX_LAYERS)],
    CodecId,
    tuple[
        Annotated[int, Meta(ge=0, le=MAX_ROWS)],
        Annotated[int, Meta(ge=0, le=MAX_TOKENS_PER_ROW)],
        Annotated[int, Meta(ge=0, le=MAX_HIDDEN_SIZE)],
    ],
    Annotated[int, Meta(ge=0, le=MAX_STEP + 1)],
    Annotated[int, Meta(ge=0, le=MAX_HELD_US)],
    Annotated[int, Meta(ge=0, le=MAX_TIME_NS)],
    Annotated[int, Meta(ge=0, le=(1 << 32) - 1)],
]
"""The header's fields in order, each within its limits. `answered` is one more than the step, so that none is 0."""

_FIELDS = (
    "version",
    "kind",
    "micro_batch",
    "epoch",
    "step",
    "rows",
    "sample",
    "start_layer",
    "codec",
    "shape",
    "answered",
    "held_us",
    "sent_ns",
    "crc32c",
)
_HEADER: msgspec.msgpack.Decoder[_Header] = msgspec.msgpack.Decoder(_Header)
_ANSWERS: msgspec.msgpack.Decoder[tuple[Answered, ...]] = msgspec.msgpack.Decoder(
    Annotated[tuple[Answered, ...], Meta(max_length=MAX_ROWS)]
)
_OPENINGS: msgspec.msgpack.Decoder[tuple[Opening, ...]] = msgspec.msgpack.Decoder(
    Annotated[tuple[Opening, ...], Meta(max_length=MAX_ROWS)]
)
_REFUSAL = msgspec.msgpack.Decoder(tuple[RefusalReason, str])
_ENCODE = msgspec.msgpack.Encoder().encode
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no MessagePack, break a type or a limit, or nest too deeply."""


def payload_bytes(codec: CodecId, shape: tuple[int, int, int]) -> int:
    """Exact payload length of hidden states; int8 carries one fp32 scale per token behind the elements, int4
    one fp16 scale for each 32 of them; two of its elements share a byte, and every token takes whole ones."""
    rows, tokens, hidden = shape
    elements = rows * tokens * hidden
    match codec:
        case CodecId.FP32:
            return 4 * elements
        case CodecId.FP16 | CodecId.BF16:
            return 2 * elements
        case CodecId.INT8:
            return elements + 4 * rows * tokens
        case CodecId.INT4:
            return rows * tokens * (-(-hidden // 2) + 2 * -(-hidden // INT4_GROUP))
        case CodecId.NONE:
            return 0


def encode(frame: Frame, crc32c: Checksum) -> list[Buffer]:
    """A frame as message parts, checksum filled in."""
    fields = _ENCODE(
        (
            PROTOCOL_VERSION,
            frame.kind,
            frame.micro_batch,
            frame.epoch,
            frame.step,
            frame.rows,
            frame.sample,
            frame.start_layer,
            frame.codec,
            frame.shape,
            frame.answered + 1,
            min(frame.held_us, MAX_HELD_US),
            frame.sent_ns,
        )
    )
    # The array of 13 (0x9d) becomes one of 14 (0x9e), whose last element follows as 0xce and four bytes.
    head = b"\x9e" + fields[1:]
    parts: list[Buffer] = [head, frame.payload]
    if frame.openings:
        parts.append(_ENCODE(frame.openings))
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
    frame = _frame(head, parts)
    if frame.kind in HANDING:
        _check_keys_and_values(frame)
    else:
        _check_payload(frame)
    return frame


def encode_answers(answers: Sequence[Answered]) -> bytes:
    """Payload of an ANSWER frame, one entry per row in the order of the header's rows."""
    return _ENCODE(answers)


def decode_answers(payload: Buffer) -> tuple[Answered, ...]:
    """Raises FrameRefused when the payload is not a list of [token, log-probability or nil, alternatives]."""
    try:
        return _ANSWERS.decode(payload)
    except _MALFORMED as problem:
        raise FrameRefused(RefusalReason.PAYLOAD, f"answers: {problem}") from problem


def encode_refusal(refused: FrameRefused) -> bytes:
    """Payload of a REFUSAL frame."""
    return _ENCODE((refused.reason.value, refused.detail[:MAX_DETAIL]))


def decode_refusal(payload: Buffer) -> FrameRefused:
    """The peer's refusal as an error to raise or report; a malformed one is reported as such."""
    try:
        return FrameRefused(*_REFUSAL.decode(payload))
    except _MALFORMED as problem:
        return FrameRefused(RefusalReason.PAYLOAD, f"refusal: {problem}")


def _frame(head: bytes, parts: Sequence[Buffer]) -> Frame:
    """The frame of a header whose version and checksum are right."""
    try:
        fields = _HEADER.decode(head)
    except _MALFORMED as problem:
        raise _header_refused(problem) from problem
    _, kind, micro_batch, epoch, step, rows, sample, start_layer, codec, shape, answered, held_us, sent_ns, _ = fields
    last_row = -1
    for row, _, _ in rows:
        if row <= last_row:
            raise FrameRefused(RefusalReason.ROW, f"row {row} after row {last_row}, ascending expected")
        last_row = row
    return Frame(
        kind,
        micro_batch,
        epoch,
        step,
        rows,
        sample,
        start_layer,
        codec,
        shape,
        answered - 1,
        held_us,
        sent_ns,
        parts[1],
        _openings(parts[2], rows) if len(parts) == 3 else (),
    )


def _header_refused(problem: Exception) -> FrameRefused:
    """msgspec says where a value broke a rule, `$[5][0]` for the first row, and a field's index says what it is."""
    found = re.search(r"\$\[(\d+)\]", str(problem))
    if found is None:
        return FrameRefused(RefusalReason.HEADER, f"not an array of {len(_FIELDS)} fields: {problem}")
    name = _FIELDS[int(found[1])]
    reason = {"rows": RefusalReason.ROW, "shape": RefusalReason.SHAPE}.get(name, RefusalReason.HEADER)
    return FrameRefused(reason, f"{name}: {problem}")


def _openings(part: Buffer, rows: tuple[RowRef, ...]) -> tuple[Opening, ...]:
    if len(part) > MAX_OPENINGS_BYTES:
        raise FrameRefused(RefusalReason.PAYLOAD, f"openings of {len(part)} bytes, at most {MAX_OPENINGS_BYTES}")
    try:
        openings = _OPENINGS.decode(part)
    except _MALFORMED as problem:
        raise FrameRefused(RefusalReason.PAYLOAD, f"openings: {problem}") from problem
    named = {(ref.row, ref.generation) for ref in rows}
    for opening in openings:
        if (opening.row, opening.generation) not in named:
            raise FrameRefused(RefusalReason.ROW, f"opening of row {opening.row}, named twice or not in the frame")
        named.remove((opening.row, opening.generation))
    return openings


def _check_payload(frame: Frame) -> None:
    size = len(frame.payload)
    match frame.kind:
        case FrameKind.PREFILL | FrameKind.DECODE:
            if frame.shape[0] != len(frame.rows):
                raise FrameRefused(RefusalReason.SHAPE, f"{frame.shape} for {len(frame.rows)} rows")
            if frame.kind is FrameKind.DECODE and frame.shape[1] != 1:
                raise FrameRefused(RefusalReason.SHAPE, f"decode of {frame.shape[1]} tokens per row")
            if frame.kind is FrameKind.PREFILL and len(frame.rows) != 1:
                raise FrameRefused(RefusalReason.SHAPE, f"prefill of {len(frame.rows)} rows")
            _check_hidden_states(frame)
        case FrameKind.PROBE:
            if frame.rows:
                raise FrameRefused(RefusalReason.ROW, f"{len(frame.rows)} rows in a probe, which is of no micro-batch")
            _check_hidden_states(frame)
        case FrameKind.ANSWER:
            if size > MAX_ANSWER_BYTES:
                raise FrameRefused(RefusalReason.PAYLOAD, f"answer of {size} bytes, at most {MAX_ANSWER_BYTES}")
        case FrameKind.REFUSAL:
            if size > MAX_REFUSAL_BYTES:
                raise FrameRefused(RefusalReason.PAYLOAD, f"refusal of {size} bytes, at most {MAX_REFUSAL_BYTES}")
        case FrameKind.PING | FrameKind.PONG:
            if size:
                raise FrameRefused(RefusalReason.PAYLOAD, f"{size} bytes in a ping")


def _check_hidden_states(frame: Frame) -> None:
    if frame.codec is CodecId.NONE or 0 in frame.shape:
        raise FrameRefused(RefusalReason.SHAPE, f"{frame.shape} in codec {frame.codec.name}")
    expected = payload_bytes(frame.codec, frame.shape)
    if len(frame.payload) != expected:
        raise FrameRefused(RefusalReason.PAYLOAD, f"{len(frame.payload)} bytes, shape {frame.shape} needs {expected}")


def _check_keys_and_values(frame: Frame) -> None:
    size = len(frame.payload)
    if frame.openings:
        raise FrameRefused(RefusalReason.ROW, f"openings in a {frame.kind.name}")
    if frame.kind is FrameKind.HANDED and frame.codec is CodecId.NONE:  # Nothing came back, or only why not.
        if any(frame.shape):
            raise FrameRefused(RefusalReason.SHAPE, f"{frame.shape} in codec {frame.codec.name}")
        if size > MAX_REFUSAL_BYTES:
            raise FrameRefused(RefusalReason.PAYLOAD, f"refusal of {size} bytes, at most {MAX_REFUSAL_BYTES}")
        return
    if frame.codec not in (CodecId.FP32, CodecId.FP16):
        raise FrameRefused(RefusalReason.SHAPE, f"keys and values in codec {frame.codec.name}")
    if frame.shape[0] != len(frame.rows):
        raise FrameRefused(RefusalReason.SHAPE, f"{frame.shape} for {len(frame.rows)} rows")
    if (asked := payload_bytes(frame.codec, frame.shape)) > MAX_SLICE_BYTES:
        raise FrameRefused(RefusalReason.SHAPE, f"{asked} bytes of keys and values, at most {MAX_SLICE_BYTES}")
    if frame.kind is not FrameKind.TAKE:
        _check_hidden_states(frame)
    elif size or 0 in frame.shape:
        raise FrameRefused(RefusalReason.SHAPE, f"{frame.shape} and {size} bytes in a question")
