"""The parser behind the load generator: any response cut anywhere, and what is no response."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.event_stream import MAX_EVENT_BYTES, MAX_HEAD_BYTES, BadResponse, EventStream

DATA = st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20).map(str.strip), max_size=6)


def fed(response: bytes, cuts: list[int]) -> tuple[EventStream, list[bytes]]:
    """The response in pieces, then the end of the connection."""
    stream, events = EventStream(), []
    places = sorted({cut % (len(response) + 1) for cut in cuts} | {0, len(response)})
    for begin, end in pairwise(places):
        events += stream.feed(response[begin:end])
    stream.end()
    return stream, events


def written(events: list[str], headers: list[tuple[str, str]], pieces: int) -> bytes:
    """A response as another implementation writes it."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.next_event()
    server.next_event()
    out = server.send(h11.Response(status_code=200, headers=headers)) or b""
    body = b"".join(b": comment\n\ndata: " + event.encode() + b"\r\n\r\n" for event in events)
    step = max(1, len(body) // pieces)
    for at in range(0, len(body), step):
        out += server.send(h11.Data(data=body[at : at + step])) or b""
    return out + (server.send(h11.EndOfMessage()) or b"")


@given(DATA, st.integers(1, 9), st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_events_come_out_as_they_went_in_however_they_are_cut(
    data: list[str], pieces: int, cuts: list[int], sized: bool
) -> None:
    size = sum(len(f"{event}".encode()) + 21 for event in data)
    headers = [("Content-Length", str(size))] if sized else [("Transfer-Encoding", "chunked")]
    stream, events = fed(written(data, headers, pieces), cuts)
    assert events == [event.encode() for event in data]
    assert stream.done
    assert stream.status == 200


def test_a_body_until_the_connection_closes_and_a_hundred_continue_before_it() -> None:
    stream = EventStream()
    assert stream.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\n\r\ndata: 1\n") == [b"1"]
    assert not stream.done
    assert stream.headers == {"x-a": "b"}
    stream.end()
    assert stream.done


def test_an_error_keeps_its_body_and_headers() -> None:
    stream = EventStream()
    assert stream.feed(b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 9\r\n\r\ndata: {}\nrest") == []
    assert (stream.status, stream.headers["retry-after"], stream.body) == (429, "3", b"data: {}\n")
    assert stream.done


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 2000,
        b"x" * (MAX_HEAD_BYTES + 1),
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_EVENT_BYTES + 1),
    ],
)
def test_what_is_no_response_is_refused(response: bytes) -> None:
    with pytest.raises(BadResponse):
        EventStream().feed(response)


@given(st.binary(max_size=300))
def test_nothing_else_is_ever_raised(garbage: bytes) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"):
        stream = EventStream()
        try:
            stream.feed(start + garbage)
            stream.end()
        except BadResponse:
            pass


def test_an_answer_that_breaks_off() -> None:
    stream = EventStream()
    stream.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
    with pytest.raises(BadResponse, match="before the answer was complete"):
        stream.end()


def test_an_errors_body_is_kept_up_to_a_limit() -> None:
    stream = EventStream()
    stream.feed(b"HTTP/1.1 500 No\r\n\r\n" + b"y" * (2 * MAX_EVENT_BYTES))
    assert len(stream.body) == MAX_EVENT_BYTES
