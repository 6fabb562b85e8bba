"""Bytes of one HTTP/1.1 response to the data of its server-sent events (RFC 9112; WHATWG HTML, 9.2). Sans-IO.

For the load generator, which must note the moment a token arrives and take as little of the machine's time as it can:
no layers between the socket and the parser. Only what a streaming completion needs; every size has a limit.
"""

from __future__ import annotations

from enum import Enum, auto

MAX_HEAD_BYTES = 64 << 10
MAX_EVENT_BYTES = 1 << 20
"""Of one line of the stream, and of what is kept of an error's body."""
MAX_SIZE_LINE_BYTES = 1 << 10


class BadResponse(Exception):
    """What came is no HTTP response, or one that exceeds a limit."""


class _State(Enum):
    HEAD = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    LENGTH = auto()
    UNTIL_CLOSE = auto()
    DONE = auto()


class EventStream:
    """One response; `feed` it whatever arrives, in pieces of any size."""

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.headers: dict[str, str] = {}
        """Names in lower case; of several with one name, the last."""
        self.body = b""
        """What came with a status other than 200, as far as MAX_EVENT_BYTES."""
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._line = bytearray()
        self._left = 0

    @property
    def done(self) -> bool:
        """The response is complete."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> list[bytes]:
        """The `data` of the events these bytes complete. Raises BadResponse."""
        self._buffer += data
        events: list[bytes] = []
        while self._advance(events):
            pass
        return events

    def end(self) -> None:
        """The other side closed. Raises BadResponse when the response was not complete."""
        if self._state is _State.UNTIL_CLOSE:
            self._state = _State.DONE
        if self._state is not _State.DONE:
            raise BadResponse("the connection was closed before the answer was complete")

    def _advance(self, events: list[bytes]) -> bool:
        """One step; whether there may be another."""
        if self._state is _State.HEAD:
            return self._read_head()
        if self._state is _State.CHUNK_SIZE:
            return self._read_size()
        if self._state in (_State.CHUNK_END, _State.TRAILER):
            return self._read_line_end()
        if self._state is _State.DONE:
            # A connection carries one answer: what follows it is nothing we asked for.
            self._buffer.clear()
            return False
        if not self._buffer:
            return False
        size = len(self._buffer) if self._state is _State.UNTIL_CLOSE else min(self._left, len(self._buffer))
        self._take(bytes(self._buffer[:size]), events)
        del self._buffer[:size]
        if self._state is not _State.UNTIL_CLOSE:
            self._left -= size
            if not self._left:
                self._state = _State.CHUNK_END if self._state is _State.CHUNK else _State.DONE
        return True

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadResponse(f"a head of more than {MAX_HEAD_BYTES} bytes")
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isdigit() and len(words[1]) == 3):
            raise BadResponse(f"no HTTP response: {first[:80]!r}")
        status = int(words[1])
        if 100 <= status < 200:
            return True
        self.status = status
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._state = self._body_state()
        return True

    def _body_state(self) -> _State:
        if self.status in (204, 304):
            return _State.DONE
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return _State.CHUNK_SIZE
        length = self.headers.get("content-length")
        if length is None:
            return _State.UNTIL_CLOSE
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            raise BadResponse(f"content-length: {length[:40]!r}")
        self._left = int(length)
        return _State.LENGTH if self._left else _State.DONE

    def _read_size(self) -> bool:
        line = self._next_line()
        if line is None:
            return False
        digits = line.split(b";")[0].strip()
        try:
            # int() would take signs and underscores as well.
            self._left = int(digits, 16) if digits.isalnum() and len(digits) <= 16 else -1
        except ValueError:
            self._left = -1
        if self._left < 0:
            raise BadResponse(f"size of a chunk: {digits[:40]!r}")
        self._state = _State.CHUNK if self._left else _State.TRAILER
        return True

    def _read_line_end(self) -> bool:
        line = self._next_line()
        if line is None:
            return False
        if self._state is _State.CHUNK_END:
            if line:
                raise BadResponse("a chunk is longer than its size")
            self._state = _State.CHUNK_SIZE
        elif not line:
            self._state = _State.DONE
        return True

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_SIZE_LINE_BYTES:
                raise BadResponse("a line between chunks that does not end")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _take(self, data: bytes, events: list[bytes]) -> None:
        """Part of the body: lines of the stream, or an error's text."""
        if self.status != 200:
            self.body += data[: MAX_EVENT_BYTES - len(self.body)]
            return
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(rest)
        if len(rest) > MAX_EVENT_BYTES:
            raise BadResponse(f"a line of more than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                events.append(line[5:].strip())
