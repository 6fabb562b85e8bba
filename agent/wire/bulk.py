"""What is said over the bulk socket: a device asks for bytes of a part, the other end answers with a chunk. Sans-IO.

Rules
1. Bytes from outside are accepted whole or raise BadMessage; no other exception leaves this module.
2. A request names everything: the answering end keeps nothing for a client but the requests that wait.
3. Names of parts and items are checked against a pattern here, before anything looks for a file.

Layout and meaning of each field: docs/bulk.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from agent.errors import BadMessage
from agent.wire.codec import Buffer

BULK_VERSION = 1

MAX_CHUNK_BYTES = 1 << 20
"""A second of an 8 Mbit/s link: long enough to cost nothing per byte, short enough to be asked again elsewhere."""
MAX_REQUEST_BYTES = 1024
"""The longest names and numbers that the patterns below allow take less than half."""
MAX_REPLY_BYTES = 4096
MAX_DETAIL = 512
"""Characters of a reply's detail: at most 2048 bytes of UTF-8, within MAX_REPLY_BYTES."""
MAX_ITEM_BYTES = 1 << 40
MAX_NUMBER = (1 << 53) - 1

DIGEST = r"\A[0-9a-f]{64}\Z"
PART = r"\A(layer-([0-9]{3}|[1-9][0-9]{3})|embedding|head|model)\Z"
"""`model` is what is said about the model as a whole: its config.json and what its digest was made of."""
ITEM = r"\A[A-Za-z0-9._-]{0,200}\Z"
"""A tensor of the part by its name, or empty for the part's manifest."""


class ReplyKind(IntEnum):
    CHUNK = 1
    """Bytes of the item follow in a second message part."""
    MISSING = 2
    """This end does not have the part, or it has no such item: ask another one."""
    WAIT = 3
    """Alive, but it takes a while: the part is being made, or others have their turn. The request still waits."""
    REFUSED = 4
    """The request is wrong or cannot be carried out; `detail` says why."""
    LATER = 5
    """The part is being made: ask again in a moment. The request is forgotten."""


class Fetch(NamedTuple):
    """Ask for `length` bytes of an item from `offset` on; fewer come where the item ends before."""

    number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Chosen by who asks; comes back in the reply."""
    digest: Annotated[str, Meta(pattern=DIGEST)]
    quantization: Annotated[str, Meta(pattern=r"\A[a-z0-9]{1,16}\Z")]
    block_size: Annotated[int, Meta(ge=0, le=1 << 16)]
    compute: Annotated[str, Meta(pattern=r"\A(fp32|fp16)\Z")]
    part: Annotated[str, Meta(pattern=PART)]
    item: Annotated[str, Meta(pattern=ITEM)]
    offset: Annotated[int, Meta(ge=0, le=MAX_ITEM_BYTES)]
    length: Annotated[int, Meta(ge=1, le=MAX_CHUNK_BYTES)]


class Reply(NamedTuple):
    """The answer to the Fetch of the same number."""

    number: int
    kind: ReplyKind
    total_bytes: int = 0
    """Of the whole item, with a chunk."""
    detail: str = ""
    data: Buffer = b""


class _ReplyHead(NamedTuple):
    version: Annotated[int, Meta(ge=BULK_VERSION, le=BULK_VERSION)]
    number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    kind: ReplyKind
    total_bytes: Annotated[int, Meta(ge=0, le=MAX_ITEM_BYTES)]
    detail: Annotated[str, Meta(max_length=MAX_DETAIL)]


_Version = Annotated[int, Meta(ge=BULK_VERSION, le=BULK_VERSION)]
_FETCH: msgspec.msgpack.Decoder[tuple[_Version, Fetch]] = msgspec.msgpack.Decoder(tuple[_Version, Fetch])
_REPLY: msgspec.msgpack.Decoder[_ReplyHead] = msgspec.msgpack.Decoder(_ReplyHead)
_ENCODE = msgspec.msgpack.Encoder().encode
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode_fetch(fetch: Fetch) -> list[Buffer]:
    """A request as its one message part."""
    return [_ENCODE((BULK_VERSION, fetch))]


def decode_fetch(parts: Sequence[Buffer]) -> Fetch:
    """Message parts to a checked request. Raises BadMessage."""
    if len(parts) != 1 or len(parts[0]) > MAX_REQUEST_BYTES:
        raise BadMessage(f"request of {len(parts)} parts: one of at most {MAX_REQUEST_BYTES} bytes expected")
    try:
        return _FETCH.decode(parts[0])[1]
    except _MALFORMED as problem:
        raise BadMessage(f"request for weights: {problem}") from problem


def encode_reply(reply: Reply) -> list[Buffer]:
    """An answer as message parts: two with a chunk, one without."""
    head = _ENCODE(_ReplyHead(BULK_VERSION, reply.number, reply.kind, reply.total_bytes, reply.detail[:MAX_DETAIL]))
    return [head, reply.data] if reply.kind is ReplyKind.CHUNK else [head]


def decode_reply(parts: Sequence[Buffer]) -> Reply:
    """Message parts to a checked answer; its data is the part itself, not a copy. Raises BadMessage."""
    if not 1 <= len(parts) <= 2 or len(parts[0]) > MAX_REPLY_BYTES:
        raise BadMessage(f"answer of {len(parts)} parts: one or two, the first at most {MAX_REPLY_BYTES} bytes")
    try:
        head = _REPLY.decode(parts[0])
    except _MALFORMED as problem:
        raise BadMessage(f"answer with weights: {problem}") from problem
    has_data = head.kind is ReplyKind.CHUNK
    if has_data != (len(parts) == 2):
        raise BadMessage(f"answer {head.kind.name} of {len(parts)} parts")
    data = parts[1] if has_data else b""
    if len(data) > min(MAX_CHUNK_BYTES, head.total_bytes) or (has_data and not len(data)):
        raise BadMessage(f"chunk of {len(data)} bytes of an item of {head.total_bytes}")
    return Reply(head.number, head.kind, head.total_bytes, head.detail, data)
