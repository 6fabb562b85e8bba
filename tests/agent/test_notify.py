"""sd_notify over a real socket; the watchdog is fed only while every loop turns."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.notify import Watchdog, notify, watchdog_interval_s


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_arrive_in_one_datagram(tmp_path: Path, abstract: bool) -> None:
    name = f"edge-notify-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name if abstract else name)
        systemd.settimeout(5)
        assert notify({"NOTIFY_SOCKET": "@" + name if abstract else name}, "READY=1", "STATUS=4 layers")
        assert systemd.recv(4096) == b"READY=1\nSTATUS=4 layers"


def test_outside_systemd_nothing_is_sent() -> None:
    assert not notify({}, "READY=1")


def test_a_wrong_socket_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="neither a path"):
        notify({"NOTIFY_SOCKET": "vsock:2:1"}, "READY=1")
    with pytest.raises(OSError, match="No such file"):
        notify({"NOTIFY_SOCKET": str(tmp_path / "gone")}, "READY=1")


def test_a_manager_that_reads_nothing_is_waited_for_a_moment_only(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        with pytest.raises(TimeoutError):
            # More than any kernel queues (net.unix.max_dgram_qlen).
            any(not notify({"NOTIFY_SOCKET": name}, "WATCHDOG=1") for _ in range(10_000))


@pytest.mark.parametrize(
    ("env", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_interval_is_a_third_of_what_systemd_allows(env: dict[str, str], interval_s: float | None) -> None:
    assert watchdog_interval_s(env, pid=7) == interval_s


def test_one_silent_loop_starves_the_watchdog() -> None:
    watchdog = Watchdog(10, ["control", "worker"])
    watchdog.tick("control")
    assert not watchdog.feed(0)
    assert watchdog.silent(0) == ("worker",)
    watchdog.tick("worker")
    assert watchdog.feed(0)
    watchdog.tick("control")
    watchdog.tick("worker")
    assert not watchdog.feed(9.9)
    assert watchdog.feed(10)
    assert not watchdog.feed(20)


def test_a_long_operation_counts_until_its_deadline() -> None:
    watchdog = Watchdog(1, ["worker"])
    watchdog.begin("worker", deadline_s=5)
    assert watchdog.feed(0)
    assert watchdog.feed(4.9)
    assert not watchdog.feed(5.9)
    watchdog.end("worker")
    assert watchdog.feed(6)
    assert not watchdog.feed(7.5)


def test_unknown_loops_are_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError, match="not one of the watched loops control"):
        Watchdog(1, ["control"]).tick("worker")


class WatchdogAgainstItsRule(RuleBasedStateMachine):
    """Whatever happens, a feeding means that each loop ticked after the one before or had time left."""

    LOOPS = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.watchdog = Watchdog(3, self.LOOPS)
        self.now_s = 0
        self.last_fed_s = -3
        self.alive: set[str] = set()
        self.deadlines_s: dict[str, int] = {}

    @rule()
    def time_passes(self) -> None:
        self.now_s += 1

    @rule()
    def a_ticks(self) -> None:
        self.watchdog.tick("a")
        self.alive.add("a")

    @rule()
    def b_ticks(self) -> None:
        self.watchdog.tick("b")
        self.alive.add("b")

    @rule()
    def b_begins(self) -> None:
        self.deadlines_s["b"] = self.now_s + 4
        self.watchdog.begin("b", self.now_s + 4)

    @precondition(lambda self: "b" in self.deadlines_s)
    @rule()
    def b_ends(self) -> None:
        del self.deadlines_s["b"]
        self.watchdog.end("b")
        self.alive.add("b")

    @invariant()
    def fed_exactly_when_due_and_alive(self) -> None:
        living = all(loop in self.alive or self.deadlines_s.get(loop, 0) > self.now_s for loop in self.LOOPS)
        expected = living and self.now_s - self.last_fed_s >= 3
        assert self.watchdog.feed(self.now_s) == expected
        if expected:
            self.last_fed_s = self.now_s
            self.alive.clear()


TestWatchdogAgainstItsRule = WatchdogAgainstItsRule.TestCase
