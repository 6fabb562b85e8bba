"""A real edge-agent with its two processes, and the smallest coordinator it can talk to.

Nothing sleeps here: processes are watched by what they say (sd_notify, control messages, log lines) and by whether
they live, each with a deadline.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import psutil

from agent.config import toml_text
from agent.wire import messages
from agent.wire.addresses import PeerKey
from agent.wire.control_plane import AsyncControlServer
from agent.wire.message import Message
from agent.wire.messages import (
    PROTOCOL_VERSION,
    FromAgent,
    FromSource,
    Heartbeat,
    Hello,
    LoadProgress,
    Telemetry,
    Welcome,
    WorkerHello,
)
from agent.wire.security import AllowList, KeyPair, create_key_file, generate_keys

MODELS = Path(__file__).parents[2] / "examples" / "models"
EDGE_AGENT = Path(sys.executable).with_name("edge-agent")
DEADLINE_S = 30.0
POLL_S = 0.01

Kind = TypeVar("Kind", bound=Message)


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> float:
    """Seconds until the condition holds; fails naming it when the deadline passes."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() - started_s > deadline_s:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - started_s


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass
class AgentProcess:
    """One agent; its standard error is a file, its notifications go to a socket of the test."""

    name: str
    public_key: str
    process: subprocess.Popen[bytes]
    log_file: Path
    notifications: socket.socket
    said: str = ""

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def has_notified(self, line: str) -> bool:
        try:
            while True:
                self.said += self.notifications.recv(4096).decode() + "\n"
        except BlockingIOError:
            return line in self.said.splitlines()

    def wait_ready(self) -> float:
        return wait_until(lambda: self.has_notified("READY=1") or self._has_died(), f"{self.name} is ready")

    def _has_died(self) -> bool:
        assert self.process.poll() is None, f"{self.name} exited with {self.process.returncode}:\n{self.log()}"
        return False

    def worker(self) -> int:
        """Process id of the worker that runs now."""
        pids: list[int] = []

        def found() -> bool:
            pids[:] = [c.pid for c in psutil.Process(self.process.pid).children() if is_alive(c.pid)]
            return bool(pids)

        wait_until(found, f"{self.name} has a worker")
        return pids[0]

    def stop(self) -> tuple[int, float]:
        """Exit status and seconds it took after SIGTERM."""
        started_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S), time.monotonic() - started_s


@contextmanager
def agent(
    directory: Path, name: str, coordinator: str, coordinator_key: str, **settings: str | int | bool
) -> Iterator[AgentProcess]:
    """An agent of this name with a new key, running; killed at the end if it still runs."""
    directory.mkdir(parents=True, exist_ok=True)
    public = create_key_file(directory / "agent.key")
    values: dict[str, str | int | bool] = {
        "name": name,
        "coordinator": coordinator,
        "coordinator_key": coordinator_key,
        "bind": "tcp://127.0.0.1:0",
        "models_dir": str(MODELS),
        "cache_dir": str(directory / "cache"),
        "key_file": "agent.key",
        "threads": 1,
        "provider": "cpu",
        "log_format": "text",
    }
    (directory / "agent.toml").write_text(toml_text({**values, **settings}), encoding="utf-8")
    notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notifications.bind(str(directory / "notify"))
    notifications.setblocking(False)
    log_file = directory / "log"
    with notifications, log_file.open("wb") as log:
        process = subprocess.Popen(
            [EDGE_AGENT, "run", "--config", directory / "agent.toml"],
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify")},
        )
        one = AgentProcess(name, public, process, log_file, notifications)
        try:
            yield one
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of an agent, its worker first."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
    process.wait(DEADLINE_S)


class Coordinator:
    """Takes what agents say one message after the other; says what a test tells it to. Made in a running event loop."""

    def __init__(self, keys: KeyPair | None = None, bind: str = "tcp://127.0.0.1:0") -> None:
        self.keys = keys or generate_keys()
        self.allowed = AllowList()
        self._server = AsyncControlServer(self.keys, self.allowed, bind)
        self.endpoint = self._server.endpoint
        self._is_open = True
        self.supervisors: dict[str, bytes] = {}
        self.workers: dict[str, bytes] = {}
        self.hellos: dict[str, Hello] = {}
        self.telemetry: dict[str, Telemetry] = {}
        self._unread: list[tuple[str, Message]] = []

    async def next(self, kind: type[Kind], device: str | None = None) -> Kind:
        """The next message of this kind, from this device if one is named; others stay for later calls."""

        async def read() -> Kind:
            while True:
                for index, (sender, message) in enumerate(self._unread):
                    if isinstance(message, kind) and device in (None, sender):
                        del self._unread[index]
                        return message
                await self._receive()

        try:
            return await asyncio.wait_for(read(), DEADLINE_S)
        except asyncio.TimeoutError:
            unread = [message for _, message in self._unread if not isinstance(message, (Heartbeat, LoadProgress))]
            raise AssertionError(f"no {kind.__name__} from {device or 'anyone'}; unread are {unread}") from None

    def forget(self, kind: type[Message]) -> None:
        """What came of this kind and was not read yet is about the past."""
        self._unread = [(sender, message) for sender, message in self._unread if not isinstance(message, kind)]

    async def _receive(self) -> None:
        origin, device, data = await self._server.receive()
        message: Any = messages.decode(data, Union[FromAgent, FromSource])
        match message:
            case Hello():
                self.supervisors[device] = origin
                self.hellos[device] = message
            case WorkerHello():
                self.workers[device] = origin
            case Heartbeat():
                self.telemetry[device] = message.telemetry
        self._unread.append((device, message))

    async def tell(self, device: str, message: Message) -> None:
        assert await self._server.send(self.supervisors[device], messages.encode(message))

    async def tell_worker(self, device: str, message: Message) -> None:
        assert await self._server.send(self.workers[device], messages.encode(message))

    async def tell_bytes(self, device: str, data: bytes) -> None:
        assert await self._server.send(self.supervisors[device], data)

    async def welcome(self, *agents: AgentProcess) -> None:
        """Wait for both connections of each agent, and tell each of the others' keys."""
        for one in agents:
            await self.next(Hello, one.name)
            await self.next(WorkerHello, one.name)
        peers = tuple(PeerKey(one.name, one.public_key) for one in agents)
        for one in agents:
            await self.tell(one.name, Welcome(PROTOCOL_VERSION, "0.0.0", peers))

    def close(self) -> None:
        """Once or more often."""
        if self._is_open:
            self._is_open = False
            self._server.close()
