"""The pipe between supervisor and worker: a Unix stream socket pair, one length-prefixed MessagePack map per message.

The pair is inherited, so it has no name anyone else could open, and either side learns of the other's death as end of
file. Requests of the coordinator pass through unchanged; the messages below never leave the device.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import msgspec

from agent.config import PATH_KEYS, AgentConfig
from agent.errors import AgentError, BadMessage
from agent.log import configure
from agent.wire import messages
from agent.wire.measure_messages import MeasureDevice, MeasureLink, MeasureQuality
from agent.wire.message import Message
from agent.wire.messages import FromAgent, Load, Telemetry, ToAgent, Unload

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")


class Configure(Message, frozen=True):
    """First message to a worker: the supervisor's configuration, paths made absolute. It holds no secret."""

    json: str

    @classmethod
    def of(cls, config: AgentConfig) -> Configure:
        absolute = {
            name: str(Path(value).absolute()) if name in PATH_KEYS and value else value
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


ENDING_MEASUREMENTS = (Stop, Load, Unload, MeasureDevice, MeasureLink, MeasureQuality)
"""Whoever asks for one of these waits for no measurement of an earlier request, whose asker may be gone."""


LOOK_BYTES = 1 << 18
"""How far ahead `check_superseded` looks: as much as the kernel keeps for a pipe of this kind."""


class Superseded(Exception):
    """A request has arrived that ends the measurement at hand."""


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

    def check_superseded(self) -> None:
        """Raises Superseded when a request that ends measurements waits to be received; takes nothing from the pipe."""
        try:
            waiting = self._end.recv(LOOK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return
        bodies, _ = _split(bytes(self._received) + waiting)
        for body in bodies:
            with contextlib.suppress(BadMessage):  # Whoever receives it says so.
                if isinstance(messages.decode(body, ToWorker), ENDING_MEASUREMENTS):
                    raise Superseded

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
        bodies, size_bytes = _split(self._received)
        self._bodies += bodies
        del self._received[:size_bytes]

    def close(self) -> None:
        self._end.close()


def module_command(module: str) -> list[str]:
    """How a process of ours starts a module of ours: nobody's files shadow it where the working directory is /."""
    # Off the module path altogether, where Python can.
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *safe_path, "-m", module]


def start_child(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child that runs `run_child` on its end of a pipe, and our end. Raises OSError when no process is to be had."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [*module_command(module), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                # Signals of a terminal are for the supervisor, which then tells its children to stop.
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def run_child(descriptor: int, process: str, run: Callable[[AgentConfig, WorkerChannel], None]) -> int:
    """A child of the supervisor, from its first message, the configuration, to its exit status.

    `descriptor` is its end of the pipe; `process` names it in the log.
    """
    with contextlib.closing(WorkerChannel(socket.socket(fileno=descriptor))) as channel:
        try:
            first: Configure = channel.wait(Configure)
            configuration = first.config()
            configure(configuration.log_level, configuration.log_format, device=configuration.name, process=process)
            run(configuration, channel)
        except AgentError as problem:
            logger.error("%s_failed", process, extra={"code": problem.code, "problem": str(problem)})
            return 1
        except (ChannelClosed, KeyboardInterrupt):
            return 0
    return 0


def _split(data: bytes | bytearray) -> tuple[list[bytes], int]:
    """The whole messages that `data` begins with, and how many bytes they take. Raises BadMessage for one too long."""
    bodies = []
    begin = 0
    while len(data) - begin >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data, begin)
        if length > messages.MAX_CONTROL_BYTES:
            raise BadMessage(f"{length} bytes on the worker's pipe, at most {messages.MAX_CONTROL_BYTES}")
        end = begin + _LENGTH.size + length
        if len(data) < end:
            break
        bodies.append(bytes(data[begin + _LENGTH.size : end]))
        begin = end
    return bodies, begin
