"""A profile over real bytes and over a real socket, and what becomes of an older one."""

from __future__ import annotations

import asyncio
import io
import math
import sys
from datetime import datetime, timezone
from pathlib import Path

import msgpack
import pytest

from agent.wire.measure_messages import DeviceMeasured, LinkMeasured, MeasureDevice, MeasureLink, MeasureProgress
from agent.wire.message import Message
from agent.wire.messages import Failed, ToAgent, decode, encode
from agent.wire.security import create_key_file
from edgectl.config import ClusterConfig, load_config
from edgectl.failures import ExitCode
from edgectl.measurements import Task
from edgectl.measuring_run import open_control
from edgectl.output import CommandFailure
from edgectl.profiling import Advanced, Profiling
from edgectl.profiling_run import Bars, measure_cluster, profile_of, run_profiling
from tests.fakes.measured_devices import (
    SPEC,
    Bench,
    cluster_profile,
    device_profile,
    link_profile,
    settings,
)
from tests.fakes.sockets import free_port

AT = datetime(2026, 11, 22, 8, 30, tzinfo=timezone.utc)


class Wire:
    """A ControlServer whose devices answer every measurement at once, those of `broken` with a failure and
    those of `lying` with nonsense."""

    def __init__(self, *names: str, broken: str = "", lying: str = "") -> None:
        self.bench = Bench(dict.fromkeys(names, "boot"), wait_s=math.inf)
        self.broken = broken
        self.lying = lying
        self.inbox: asyncio.Queue[tuple[bytes, str, bytes]] = asyncio.Queue()
        self.inbox.put_nowait((b"a", "a", b"garbage"))
        for name in names:
            self.say(name, self.bench.hello(name))

    def say(self, name: str, message: Message) -> None:
        self.inbox.put_nowait((name.encode(), name, encode(message)))

    async def receive(self) -> tuple[bytes, str, bytes]:
        return await self.inbox.get()

    async def send(self, origin: bytes, data: bytes) -> bool:
        name, message = origin.decode(), decode(data, ToAgent)
        if isinstance(message, MeasureDevice) and name == self.broken:
            self.say(name, Failed("measure-device", "out_of_memory", f"{name}: no room"))
        elif isinstance(message, MeasureDevice) and name == self.lying:
            said = encode(DeviceMeasured(message.request, device_profile(name)))
            memory = msgpack.packb("memory_bytes")
            self.inbox.put_nowait((origin, name, said.replace(memory, msgpack.packb("memory_bites"), 1)))
        elif isinstance(message, MeasureDevice):
            self.say(name, MeasureProgress("decode", 1, 2))
            self.say(name, DeviceMeasured(message.request, device_profile(name)))
        elif isinstance(message, MeasureLink):
            self.say(name, LinkMeasured(message.request, link_profile(name, message.peer)))
        return True


def run(wire: Wire) -> Profiling:
    asyncio.run(run_profiling(wire.bench.profiling, wire, Bars()))
    return wire.bench.profiling


def test_devices_and_links_are_measured_and_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    profile = profile_of(run(Wire("a", "b")), SPEC, at=AT)
    assert [device.name for device in profile.devices] == ["a", "b"]
    assert [(link.source, link.destination) for link in profile.links] == [("a", "b"), ("b", "a")]
    assert (profile.model, profile.quantization, profile.created) == ("m", "int4", "2026-11-22T08:30:00Z")
    out, err = capsys.readouterr()
    assert out == ""
    assert "measuring 2 devices and 2 links" in err
    assert "measured a → b" in err


def test_a_device_that_fails_is_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    profile = profile_of(run(Wire("a", "b", broken="b")), SPEC)
    assert [device.name for device in profile.devices] == ["a"]
    assert profile.links == ()
    assert "warning: b: b: no room" in capsys.readouterr().err


def test_an_answer_that_is_none_ends_the_measurement_at_once() -> None:
    profiling = run(Wire("a", "b", lying="b"))
    assert set(profiling.profiles) == {"a"}
    assert profiling.problems["b"].startswith("b answered nonsense: message kind 'device-measured'")


@pytest.mark.parametrize("what", ["[/b] [bold", "\x1b]0;title\x07", "x" * 60_000])
def test_bars_show_what_devices_say_and_do_not_obey_it(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    task = Task("a")
    bars = Bars()
    bars.planned([task])
    bars.began(task)
    bars.advanced(Advanced(task, what, -1, 0))
    bars.say(f"said {what[:40]}")
    bars.close()
    text = shown.getvalue()
    assert "\x1b]0" not in text
    assert text.count(what[:14].replace("\x1b", "\\x1b").replace("\x07", "\\x07")) >= 2
    assert "x" * 100 not in text


def test_without_a_single_device_there_is_no_profile() -> None:
    with pytest.raises(CommandFailure, match="no device could be measured\n  a: a: no room") as raised:
        run(Wire("a", broken="a"))
    assert raised.value.exit_code is ExitCode.UNAVAILABLE


def test_what_was_not_measured_again_is_taken_from_the_older_profile() -> None:
    before = cluster_profile({"a": 7.0, "b": 7.0, "c": 7.0, "gone": 7.0})
    profiling = Profiling([(name, "key") for name in "abc"], ("b",), settings(), "1.0.0", 1.0)
    profiling.profiles = {"b": device_profile("b")}
    profiling.links = {("a", "b"): link_profile("a", "b", latency_ms=9.0)}
    profiling.problems = {"b → c": "c does not answer"}
    after = profile_of(profiling, SPEC, before, AT)
    assert [(device.name, device.decode[0].layer.ms) for device in after.devices] == [
        ("a", 7.0),
        ("b", 1.0),
        ("c", 7.0),
    ]
    links = {(link.source, link.destination): link.latency_ms for link in after.links}
    assert links == {("a", "b"): 9.0, ("a", "c"): 0.25, ("b", "a"): 0.25, ("c", "a"): 0.25, ("c", "b"): 0.25}
    assert after.created == "2026-11-22T08:30:00Z"


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    create_key_file(tmp_path / "coordinator.key")
    key = create_key_file(tmp_path / "a.key")
    path = tmp_path / "cluster.toml"
    path.write_text(
        f'[coordinator]\nbind = "tcp://127.0.0.1:{free_port()}"\nkey_file = "coordinator.key"\n'
        f"[[devices]]\nname = \"a\"\nkey = '{key}'\n"
    )
    return load_config(path, {})


def test_nobody_comes(config: ClusterConfig) -> None:
    with pytest.raises(CommandFailure, match="a: not connected"):
        asyncio.run(measure_cluster(config, settings(), ("a",), wait_s=0.0))


def test_an_interrupt_leaves_the_address_free(config: ClusterConfig) -> None:
    async def interrupted() -> None:
        task = asyncio.create_task(measure_cluster(config, settings(), ("a",), wait_s=60.0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        open_control(config).close()

    asyncio.run(interrupted())
