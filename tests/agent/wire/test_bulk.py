"""Requests and answers of the bulk socket: what is written is read again, and nothing else is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BadMessage
from agent.wire.bulk import (
    BULK_VERSION,
    MAX_CHUNK_BYTES,
    MAX_DETAIL,
    MAX_NUMBER,
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    Fetch,
    Reply,
    ReplyKind,
    decode_fetch,
    decode_reply,
    encode_fetch,
    encode_reply,
)

PARTS = ["layer-000", "layer-1023", "embedding", "head", "model"]
FETCH = Fetch(7, "a" * 64, "int4", 128, "fp32", "layer-012", "12.qkv.weight.q", 3 << 20, 1 << 20)


@given(
    st.builds(
        Fetch,
        st.integers(0, MAX_NUMBER),
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.sampled_from(["fp32", "fp16", "int8", "int4"]),
        st.sampled_from([0, 32, 128]),
        st.sampled_from(["fp32", "fp16"]),
        st.sampled_from(PARTS),
        st.text("abcXYZ019._-", max_size=200),
        st.integers(0, 1 << 40),
        st.integers(1, MAX_CHUNK_BYTES),
    )
)
def test_a_request_comes_back_and_is_short(fetch: Fetch) -> None:
    [part] = encode_fetch(fetch)
    assert len(part) <= MAX_REQUEST_BYTES
    assert decode_fetch([part]) == fetch


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", -1),
        ("number", MAX_NUMBER + 1),
        ("digest", "A" * 64),
        ("digest", "a" * 64 + "\n"),
        ("digest", "../" + "a" * 61),
        ("quantization", "../int4"),
        ("block_size", -1),
        ("compute", "fp64"),
        ("part", "layer-1"),
        ("part", "layer-000/../../head"),
        ("part", "head\n"),
        ("part", ""),
        ("item", "../../etc/passwd"),
        ("item", "x" * 201),
        ("item", "a b"),
        ("offset", -1),
        ("offset", (1 << 40) + 1),
        ("length", 0),
        ("length", MAX_CHUNK_BYTES + 1),
        ("length", "1"),
    ],
)
def test_a_field_beyond_its_limits_is_refused(field: str, value: object) -> None:
    with pytest.raises(BadMessage):
        decode_fetch([msgspec.msgpack.encode((BULK_VERSION, FETCH._replace(**{field: value})))])


def test_another_version_and_a_wrong_number_of_parts_are_refused() -> None:
    [part] = encode_fetch(FETCH)
    for parts in ([], [part, b""], [b""], [part + b"x" * MAX_REQUEST_BYTES]):
        with pytest.raises(BadMessage):
            decode_fetch(parts)
    with pytest.raises(BadMessage):
        decode_fetch([msgspec.msgpack.encode((BULK_VERSION + 1, FETCH))])


@given(
    st.one_of(
        st.builds(
            Reply,
            st.integers(0, MAX_NUMBER),
            st.sampled_from([kind for kind in ReplyKind if kind is not ReplyKind.CHUNK]),
            st.just(0),
            st.text(max_size=MAX_DETAIL),
            st.just(b""),
        ),
        st.binary(min_size=1, max_size=99).flatmap(
            lambda data: st.builds(
                Reply,
                st.integers(0, MAX_NUMBER),
                st.just(ReplyKind.CHUNK),
                st.integers(len(data), 1 << 40),
                st.just(""),
                st.just(data),
            )
        ),
    )
)
def test_an_answer_comes_back(reply: Reply) -> None:
    parts = encode_reply(reply)
    assert len(parts[0]) <= MAX_REPLY_BYTES
    assert decode_reply(parts) == reply


def test_a_detail_is_cut_to_what_an_answer_may_hold() -> None:
    reply = decode_reply(encode_reply(Reply(1, ReplyKind.REFUSED, detail="\N{HOT BEVERAGE}" * 9999)))
    assert reply.detail == "\N{HOT BEVERAGE}" * MAX_DETAIL


def test_a_chunk_that_cannot_be_one_is_refused() -> None:
    head, data = encode_reply(Reply(1, ReplyKind.CHUNK, 4, data=b"1234"))
    for parts in ([], [head], [head, b""], [head, b"12345"], [head, data, data], [b"\xc1", data]):
        with pytest.raises(BadMessage):
            decode_reply(parts)
    [waiting] = encode_reply(Reply(1, ReplyKind.WAIT))
    with pytest.raises(BadMessage):
        decode_reply([waiting, b"1234"])
    too_long = encode_reply(Reply(1, ReplyKind.CHUNK, 1 << 30, data=bytes(MAX_CHUNK_BYTES + 1)))
    with pytest.raises(BadMessage):
        decode_reply(too_long)


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_no_bytes_raise_anything_else(parts: list[bytes]) -> None:
    for decode in (decode_fetch, decode_reply):
        with contextlib.suppress(BadMessage):
            decode(parts)


def test_the_document_names_every_kind_by_its_number() -> None:
    text = (Path(__file__).parents[3] / "docs" / "bulk.md").read_text(encoding="utf-8")
    for kind in ReplyKind:
        assert f"\n| {kind.value} {kind.name} |" in text
    assert f"`[version, [{', '.join(Fetch._fields)}]]`" in text
