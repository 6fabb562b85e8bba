"""The pipe between supervisor and worker: a Unix stream socket pair, one length-prefixed MessagePack map per message.

The pair is inherited, so it has no name anyone else could open, and either side learns of the other's death as end of
file. Requests of the coordinator pass through unchanged; the messages below never leave the device.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from pathlib import Path
from typing import Any, Union

import msgspec

from agent.config import AgentConfig
from agent.errors import BadMessage
from agent.wire import messages
from agent.wire.messages import FromAgent, Message, Telemetry, ToAgent

_LENGTH = struct.Struct("<I")


class Configure(Message, frozen=True):
    """First message to a worker: the supervisor's configuration, paths made absolute. It holds no secret."""

    json: str

    @classmethod
    def of(cls, config: AgentConfig) -> Configure:
        absolute = {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in msgspec.structs.asdict(config).items()
        }
        return cls(msgspec.json.encode(absolute).decode())

    def config(self) -> AgentConfig:
        """The configuration as the supervisor read it."""
        return msgspec.json.decode(self.json, type=AgentConfig, dec_hook=lambda wanted, value: wanted(value))


class WorkerReady(Message, frozen=True):
    """The data endpoint is bound and the provider has passed its inference."""

    data_endpoint: str
    provider: str


class WorkerTick(Message, frozen=True):
    """The worker's loop has turned; sent a few times a second, and by a load after every layer."""

    tick: int
    busy: str
    resident_bytes: int
    telemetry: Telemetry


class Stop(Message, frozen=True):
    """Finish the run at hand and exit."""


FromWorker = Union[WorkerReady, WorkerTick, FromAgent]
ToWorker = Union[Configure, Stop, ToAgent]


class ChannelClosed(Exception):
    """The process at the other end is gone."""


class WorkerChannel:
    """One end of the pipe; blocking sends, and receives that return what has arrived."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._received = bytearray()
        self._bodies: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: Message) -> None:
        """Raises ChannelClosed when the other process is gone."""
        data = messages.encode(message)
        try:
            self._end.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as problem:
            raise ChannelClosed from problem

    def receive(self, union: Any) -> list[Any]:
        """Messages that have arrived; call when the descriptor is readable. Raises ChannelClosed, BadMessage."""
        self._read()
        bodies, self._bodies = self._bodies, deque()
        return [messages.decode(body, union) for body in bodies]

    def wait(self, union: Any) -> Any:
        """The next message, however long it takes. Raises ChannelClosed, BadMessage.

        Not a byte more is read: what follows still makes the descriptor readable.
        """
        while not self._bodies:
            self._read(self._missing())
        return messages.decode(self._bodies.popleft(), union)

    def _missing(self) -> int:
        """Bytes until the message at hand, or its length, is complete."""
        if len(self._received) < _LENGTH.size:
            return _LENGTH.size - len(self._received)
        (length,) = _LENGTH.unpack_from(self._received)
        return int(_LENGTH.size + length - len(self._received))

    def _read(self, size_bytes: int = 1 << 16) -> None:
        try:
            data = self._end.recv(size_bytes)
        except OSError as problem:
            raise ChannelClosed from problem
        if not data:
            raise ChannelClosed
        self._received += data
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > messages.MAX_CONTROL_BYTES:
                raise BadMessage(f"{length} bytes on the worker's pipe, at most {messages.MAX_CONTROL_BYTES}")
            if len(self._received) < _LENGTH.size + length:
                break
            self._bodies.append(bytes(self._received[_LENGTH.size : _LENGTH.size + length]))
            del self._received[: _LENGTH.size + length]

    def close(self) -> None:
        self._end.close()
