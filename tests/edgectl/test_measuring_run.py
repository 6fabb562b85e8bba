"""A core of a few lines over a socket: what is sent, what is shown, when it ends; and whose the endpoint is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.wire.messages import CoordinatorAlive, ToAgent, Unload, WorkerRestarted, decode, encode
from agent.wire.security import create_key_file
from edgectl.config import load_config
from edgectl.effects import Notice, Send
from edgectl.measuring_run import drive, open_control
from tests.fakes.sockets import free_port

Effect = Send | Notice


@dataclass
class Core:
    """Answers the first message, complains of nonsense, and is done after as many messages as it is told."""

    messages: int
    heard: list[object] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return len(self.heard) >= self.messages

    def on_message(self, origin: bytes, device: str, message: object, now: float) -> Sequence[Effect]:
        self.heard.append(message)
        return [Send(origin, Unload()), Notice("info", f"{device} spoke")]

    def on_bad_message(self, origin: bytes, device: str, problem: str, now: float) -> Sequence[Effect]:
        self.heard.append(problem)
        return [Notice("error", f"{device} spoke nonsense")]

    def on_tick(self, now: float) -> Sequence[Effect]:
        return [Notice("info", "tick")] if not self.heard else []


class Wire:
    """A ControlServer that has these messages."""

    def __init__(self, *messages: bytes) -> None:
        self.inbox = list(messages)
        self.sent: list[tuple[bytes, object]] = []

    async def receive(self) -> tuple[bytes, str, bytes]:
        if not self.inbox:
            await asyncio.Event().wait()
        return b"o", "a", self.inbox.pop(0)

    async def send(self, origin: bytes, data: bytes) -> bool:
        self.sent.append((origin, decode(data, ToAgent)))
        return False


def test_what_is_sent_goes_out_and_the_rest_is_shown() -> None:
    restarted = WorkerRestarted("a worker died", "tcp://a:1")
    core, wire, shown = Core(2), Wire(encode(restarted), b"garbage", b"never read"), []
    asyncio.run(drive(core, wire, shown.append))
    assert core.heard[0] == restarted
    assert wire.sent == [(b"o", Unload())]
    assert shown == [Notice("info", "tick"), Notice("info", "a spoke"), Notice("error", "a spoke nonsense")]
    assert wire.inbox == [b"never read"]


def test_a_finished_core_reads_nothing() -> None:
    wire = Wire(encode(CoordinatorAlive()))
    asyncio.run(drive(Core(0), wire, pytest.fail))
    assert len(wire.inbox) == 1


def test_an_address_in_use_says_to_stop_the_coordinator_first(tmp_path: Path) -> None:
    create_key_file(tmp_path / "coordinator.key")
    path = tmp_path / "cluster.toml"
    path.write_text(f'[coordinator]\nbind = "tcp://127.0.0.1:{free_port()}"\nkey_file = "coordinator.key"\n')
    config = load_config(path, {})

    async def occupied() -> None:
        first = open_control(config)
        try:
            with pytest.raises(ConfigError, match="stop `edgectl serve` first"):
                open_control(config)
        finally:
            first.close()

    asyncio.run(occupied())
