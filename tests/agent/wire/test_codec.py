"""Bytes are accepted whole or raise FrameRefused; what was sent is what arrives; no limit is off by one."""

from __future__ import annotations

import zlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.errors import FrameRefused, RefusalReason
from agent.wire import codec
from agent.wire.codec import Answered, CodecId, Frame, FrameKind, RowRef
from agent.wire.messages import PROTOCOL_VERSION, Opening, Sampling


def checksum(data: codec.Buffer, seed: int) -> int:
    """Any 32-bit checksum with a seed will do for the codec; the real one is `agent.compute.kernels.crc32c`."""
    return zlib.crc32(data, seed)


def decode(parts: list[codec.Buffer]) -> Frame:
    return codec.decode(parts, checksum)


def encode(frame: Frame) -> list[codec.Buffer]:
    return codec.encode(frame, checksum)


def sealed(fields: list[object], *rest: bytes, tail: bytes = b"") -> list[codec.Buffer]:
    """A message with these 13 header fields and a right checksum, however wrong the fields are."""
    packed = b"".join(msgpack.packb(field) for field in fields)
    head = bytes([0x90 + len(fields) + 1]) + packed + tail
    crc = checksum(head, 0)
    for part in rest:
        crc = checksum(part, crc)
    return [head + b"\xce" + crc.to_bytes(4, "big"), *rest]


integers_64 = st.integers(0, codec.MAX_EPOCH)
row_refs = st.builds(
    lambda rows, generation, position: tuple(RowRef(row, generation, position) for row in sorted(rows)),
    st.sets(st.integers(0, codec.MAX_ROWS - 1), min_size=1, max_size=codec.MAX_ROWS),
    st.integers(0, codec.MAX_GENERATION),
    st.integers(0, codec.MAX_POSITION),
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(FrameKind))
    carries = kind in (FrameKind.PREFILL, FrameKind.DECODE, FrameKind.PROBE)
    rows = draw(row_refs) if kind in (*codec.HANDING, FrameKind.PREFILL, FrameKind.DECODE, FrameKind.ANSWER) else ()
    if kind is FrameKind.PREFILL:
        rows = rows[:1]
    shape = (0, 0, 0)
    codec_id = CodecId.NONE
    payload = b""
    if carries:
        tokens = 1 if kind is FrameKind.DECODE else draw(st.integers(1, 5))
        count = draw(st.integers(1, codec.MAX_ROWS)) if kind is FrameKind.PROBE else len(rows)
        shape = (count, tokens, draw(st.integers(1, 6)))
        codec_id = draw(st.sampled_from(CodecId).filter(lambda c: c is not CodecId.NONE))
        payload = draw(st.binary(min_size=1)) * codec.payload_bytes(codec_id, shape)
        payload = payload[: codec.payload_bytes(codec_id, shape)]
    elif kind in (FrameKind.GIVE, FrameKind.TAKE) or (kind is FrameKind.HANDED and draw(st.booleans())):
        shape = (len(rows), draw(st.integers(1, 5)), draw(st.integers(1, 6)))
        codec_id = draw(st.sampled_from([CodecId.FP32, CodecId.FP16]))
        payload = b"" if kind is FrameKind.TAKE else bytes(codec.payload_bytes(codec_id, shape))
    elif kind in (FrameKind.ANSWER, FrameKind.REFUSAL, FrameKind.HANDED):
        payload = draw(st.binary(max_size=64))
    openings = tuple(Opening(r.row, r.generation, Sampling(seed=7)) for r in rows if carries and draw(st.booleans()))
    return Frame(
        kind,
        draw(st.integers(0, codec.MAX_MICRO_BATCH)),
        draw(integers_64),
        draw(st.integers(0, codec.MAX_STEP)),
        rows,
        draw(st.booleans()),
        draw(st.integers(0, codec.MAX_LAYERS)),
        codec_id,
        shape,
        draw(st.integers(-1, codec.MAX_STEP)),
        draw(st.integers(0, codec.MAX_HELD_US)),
        draw(integers_64),
        payload,
        openings,
    )


DECODE = Frame(
    FrameKind.DECODE,
    micro_batch=3,
    epoch=(1 << 32) + 2,
    step=17,
    rows=(RowRef(0, 1, 40), RowRef(2, 5, 7)),
    sample=True,
    start_layer=8,
    codec=CodecId.FP16,
    shape=(2, 1, 4),
    answered=16,
    held_us=1200,
    sent_ns=123456789,
    payload=bytes(range(16)),
    openings=(Opening(2, 5, Sampling(seed=1)),),
)


@given(frames())
def test_a_frame_arrives_as_it_was_sent(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


def test_the_payload_is_the_part_itself() -> None:
    parts = encode(DECODE)
    assert decode(parts).payload is parts[1]


def test_the_header_is_what_docs_protocol_says() -> None:
    header = bytes(encode(DECODE)[0])
    fields = msgpack.unpackb(header)
    assert fields[:-1] == [
        *(PROTOCOL_VERSION, FrameKind.DECODE, 3, (1 << 32) + 2, 17, [[0, 1, 40], [2, 5, 7]]),
        *(True, 8, CodecId.FP16, [2, 1, 4], 17, 1200, 123456789),
    ]
    assert len(header) == len(msgpack.packb(fields[:-1])) + 5


def test_the_largest_header_fits_its_limit_exactly() -> None:
    largest = Frame(
        FrameKind.DECODE,
        micro_batch=codec.MAX_MICRO_BATCH,
        epoch=codec.MAX_EPOCH,
        step=codec.MAX_STEP,
        rows=tuple(RowRef(row, codec.MAX_GENERATION, codec.MAX_POSITION) for row in range(codec.MAX_ROWS)),
        sample=True,
        start_layer=codec.MAX_LAYERS,
        codec=CodecId.INT8,
        shape=(codec.MAX_ROWS, 1, codec.MAX_HIDDEN_SIZE),
        answered=codec.MAX_STEP,
        held_us=codec.MAX_HELD_US,
        sent_ns=codec.MAX_TIME_NS,
        payload=bytes(codec.payload_bytes(CodecId.INT8, (codec.MAX_ROWS, 1, codec.MAX_HIDDEN_SIZE))),
    )
    # A decode frame's tokens per row are 1; a prefill frame's take two bytes more and its rows 165 less.
    assert len(encode(largest)[0]) == codec.MAX_HEADER_BYTES - 2
    assert decode(encode(largest)) == largest


def test_held_time_saturates() -> None:
    assert decode(encode(replace(DECODE, held_us=codec.MAX_HELD_US + 1))).held_us == codec.MAX_HELD_US


def fields_of(frame: Frame) -> list[object]:
    return list(msgpack.unpackb(bytes(encode(frame)[0])))[:-1]


LIMITS = [
    ("micro_batch", 2, codec.MAX_MICRO_BATCH, RefusalReason.HEADER),
    ("epoch", 3, codec.MAX_EPOCH, RefusalReason.HEADER),
    ("step", 4, codec.MAX_STEP, RefusalReason.HEADER),
    ("start_layer", 7, codec.MAX_LAYERS, RefusalReason.HEADER),
    ("answered", 10, codec.MAX_STEP + 1, RefusalReason.HEADER),
    ("held_us", 11, codec.MAX_HELD_US, RefusalReason.HEADER),
    ("sent_ns", 12, codec.MAX_TIME_NS, RefusalReason.HEADER),
]
PING = Frame(FrameKind.PING, 0, 0, 0)


@pytest.mark.parametrize(("name", "index", "limit", "reason"), LIMITS, ids=[name for name, *_ in LIMITS])
def test_integers_at_and_beyond_their_limits(name: str, index: int, limit: int, reason: RefusalReason) -> None:
    fields = fields_of(PING)
    for accepted in (0, 1, limit - 1, limit):
        decoded = getattr(decode(sealed([*fields[:index], accepted, *fields[index + 1 :]], b"")), name)
        assert decoded == accepted - (name == "answered")
    for refused in (-1, limit + 1, (1 << 64) - 1, -(1 << 63), 1.0, True, None, "1", [1], {}):
        with pytest.raises(FrameRefused, match=name) as caught:
            decode(sealed([*fields[:index], refused, *fields[index + 1 :]], b""))
        assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("index", "value", "reason"),
    [
        (1, 0, RefusalReason.HEADER),
        (1, 11, RefusalReason.HEADER),
        (6, 1, RefusalReason.HEADER),
        (8, 6, RefusalReason.HEADER),
        (5, [[codec.MAX_ROWS, 0, 0]], RefusalReason.ROW),
        (5, [[0, codec.MAX_GENERATION + 1, 0]], RefusalReason.ROW),
        (5, [[0, 0, codec.MAX_POSITION + 1]], RefusalReason.ROW),
        (5, [[0, 0, -1]], RefusalReason.ROW),
        (5, [[0, 0]], RefusalReason.ROW),
        (5, [[0, 0, 0, 0]], RefusalReason.ROW),
        (5, [[1, 0, 0], [0, 0, 0]], RefusalReason.ROW),
        (5, [[1, 0, 0], [1, 1, 0]], RefusalReason.ROW),
        (5, [[0, 0, 0]] * 17, RefusalReason.ROW),
        (5, None, RefusalReason.ROW),
        (9, [2, 1], RefusalReason.SHAPE),
        (9, [2, 1, 4, 1], RefusalReason.SHAPE),
        (9, [17, 1, 4], RefusalReason.SHAPE),
        (9, [2, codec.MAX_TOKENS_PER_ROW + 1, 4], RefusalReason.SHAPE),
        (9, [2, 1, codec.MAX_HIDDEN_SIZE + 1], RefusalReason.SHAPE),
        (9, [2, 2, 2], RefusalReason.SHAPE),
        (9, [1, 1, 8], RefusalReason.SHAPE),
        (9, [2, 1, 0], RefusalReason.SHAPE),
        (8, 0, RefusalReason.SHAPE),
        (1, int(FrameKind.PREFILL), RefusalReason.SHAPE),
        (1, int(FrameKind.PING), RefusalReason.PAYLOAD),
        (1, int(FrameKind.PROBE), RefusalReason.ROW),
        (9, [2, 1, 5], RefusalReason.PAYLOAD),
        (8, int(CodecId.FP32), RefusalReason.PAYLOAD),
    ],
)
def test_a_wrong_field_is_refused_for_its_reason(index: int, value: object, reason: RefusalReason) -> None:
    fields = fields_of(DECODE)
    with pytest.raises(FrameRefused) as caught:
        decode(sealed([*fields[:index], value, *fields[index + 1 :]], bytes(DECODE.payload)))
    assert caught.value.reason is reason


def test_the_other_version_is_named_before_anything_else_is_read() -> None:
    with pytest.raises(FrameRefused, match=f"version 9, this device {PROTOCOL_VERSION}") as caught:
        decode([bytes([0x92, 9, 0xCE, 0, 0, 0, 0]), b""])
    assert caught.value.reason is RefusalReason.VERSION


@given(st.data())
def test_any_flipped_bit_is_found(data: st.DataObject) -> None:
    parts = [bytearray(part) for part in encode(DECODE)]
    part = data.draw(st.integers(0, len(parts) - 1))
    bit = data.draw(st.integers(0, 8 * len(parts[part]) - 1))
    parts[part][bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameRefused):
        decode(parts)


@settings(max_examples=300)
@given(frames(), st.data())
def test_mutated_fields_with_a_right_checksum_are_accepted_or_refused(frame: Frame, data: st.DataObject) -> None:
    fields = fields_of(frame)
    value = st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=6,
    )
    for _ in range(data.draw(st.integers(1, 3))):
        fields[data.draw(st.integers(1, 12))] = data.draw(value)
    rest = [bytes(part) for part in encode(frame)[1:]]
    try:
        decoded = decode(sealed(fields, *rest))
    except FrameRefused:
        return
    assert decode(encode(decoded)) == decoded


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_bytes_are_refused_with_the_typed_error(parts: list[bytes]) -> None:
    with pytest.raises(FrameRefused):
        decode(list(parts))


@given(st.binary(max_size=200))
def test_any_third_part_is_accepted_or_refused(part: bytes) -> None:
    try:
        decode(sealed(fields_of(DECODE), bytes(DECODE.payload), part))
    except FrameRefused as refused:
        assert refused.reason is RefusalReason.PAYLOAD  # noqa: PT017 (both outcomes are right)


@given(st.binary(max_size=200))
def test_any_answer_and_refusal_payload_is_accepted_or_refused(payload: bytes) -> None:
    assert isinstance(codec.decode_refusal(payload), FrameRefused)
    try:
        answers = codec.decode_answers(payload)
    except FrameRefused as refused:
        assert refused.reason is RefusalReason.PAYLOAD  # noqa: PT017
    else:
        assert all(isinstance(answer, Answered) for answer in answers)


@pytest.mark.parametrize("nested", [b"\x91" * 4000, b"\x81\xa1a" * 1300], ids=["arrays", "maps"])
def test_deep_nesting_is_refused(nested: bytes) -> None:
    with pytest.raises(FrameRefused):
        decode(sealed(fields_of(DECODE), bytes(DECODE.payload), nested))
    with pytest.raises(FrameRefused):
        codec.decode_answers(nested)


def test_openings_belong_to_rows_of_the_frame_once() -> None:
    opening = DECODE.openings[0]
    for wrong in (
        (Opening(1, 5, Sampling()),),
        (Opening(2, 4, Sampling()),),
        (opening, opening),
    ):
        with pytest.raises(FrameRefused) as caught:
            decode(encode(replace(DECODE, openings=wrong)))
        assert caught.value.reason is RefusalReason.ROW


def test_limits_of_the_parts() -> None:
    fields = fields_of(replace(DECODE, openings=()))
    with pytest.raises(FrameRefused, match=f"openings of {codec.MAX_OPENINGS_BYTES + 1}"):
        decode(sealed(fields, bytes(DECODE.payload), bytes(codec.MAX_OPENINGS_BYTES + 1)))
    with pytest.raises(FrameRefused, match="257 bytes"):
        decode(sealed(fields, b"", tail=bytes(257 - 5 - len(sealed(fields, b"")[0]) + 5)))
    for kind, limit in ((FrameKind.ANSWER, codec.MAX_ANSWER_BYTES), (FrameKind.REFUSAL, codec.MAX_REFUSAL_BYTES)):
        decode(encode(Frame(kind, 0, 0, 0, payload=bytes(limit))))
        with pytest.raises(FrameRefused, match=f"{limit + 1} bytes"):
            decode(encode(Frame(kind, 0, 0, 0, payload=bytes(limit + 1))))
    for count in (0, 1, 4):
        with pytest.raises(FrameRefused, match=f"{count} message parts"):
            decode([b""] * count)


def test_three_hundred_logit_biases_fit_one_opening() -> None:
    biases = tuple((100_000 + token, -100.0) for token in range(300))
    opened = replace(DECODE, openings=(Opening(2, 5, Sampling(logit_bias=biases)),))
    assert decode(encode(opened)) == opened


def test_the_longest_answer_fits() -> None:
    entry = Answered(200_000, -0.125, tuple((200_000 + i, -1.5) for i in range(20)))
    payload = codec.encode_answers([entry] * codec.MAX_ROWS)
    assert len(payload) <= codec.MAX_ANSWER_BYTES
    assert codec.decode_answers(payload) == (entry,) * codec.MAX_ROWS


@given(st.sampled_from(RefusalReason), st.text(max_size=2000))
def test_a_refusal_arrives_with_its_reason(reason: RefusalReason, detail: str) -> None:
    payload = codec.encode_refusal(FrameRefused(reason, detail))
    arrived = codec.decode_refusal(payload)
    assert (arrived.reason, arrived.detail) == (reason, detail[: codec.MAX_DETAIL])
    assert len(payload) <= codec.MAX_REFUSAL_BYTES


GIVE = replace(DECODE, kind=FrameKind.GIVE, openings=(), shape=(2, 3, 4), payload=bytes(48))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"openings": DECODE.openings}, RefusalReason.ROW),
        ({"codec": CodecId.INT8, "payload": bytes(48)}, RefusalReason.SHAPE),
        ({"codec": CodecId.NONE, "payload": b""}, RefusalReason.SHAPE),
        ({"shape": (3, 3, 4), "payload": bytes(72)}, RefusalReason.SHAPE),
        ({"shape": (2, 0, 4), "payload": b""}, RefusalReason.SHAPE),
        ({"payload": bytes(47)}, RefusalReason.PAYLOAD),
        ({"kind": FrameKind.TAKE}, RefusalReason.SHAPE),
        ({"kind": FrameKind.TAKE, "shape": (2, 3, 0), "payload": b""}, RefusalReason.SHAPE),
        ({"kind": FrameKind.TAKE, "shape": (2, 4096, 257), "payload": b""}, RefusalReason.SHAPE),
        ({"shape": (2, 4096, 257), "payload": bytes(2 * 2 * 4096 * 257)}, RefusalReason.SHAPE),
        ({"kind": FrameKind.HANDED, "codec": CodecId.NONE}, RefusalReason.SHAPE),
        (
            {"kind": FrameKind.HANDED, "codec": CodecId.NONE, "shape": (0, 0, 0), "payload": bytes(8193)},
            RefusalReason.PAYLOAD,
        ),
    ],
)
def test_keys_and_values_that_contradict_themselves_are_refused(
    change: dict[str, object], reason: RefusalReason
) -> None:
    decode(encode(GIVE))
    with pytest.raises(FrameRefused) as caught:
        decode(encode(replace(GIVE, **change)))
    assert caught.value.reason is reason
