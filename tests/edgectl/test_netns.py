"""Network namespaces: what is refused, what is made and shaped, what a stalled link does, and that nothing stays."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from agent.wire.data_plane import DataPlane
from agent.wire.events import Connected, Disconnected, Replied
from agent.wire.security import AllowList, generate_keys
from edgectl import netns
from edgectl.netns import Namespaces, NamespacesUnavailable, Uplink, token_bucket

HERE, THERE = generate_keys(), generate_keys()
RATE = 1.25e6
"""10 Mbit/s"""
STALL_S = 5.0


def why_not() -> str:
    try:
        with Namespaces(["probe"], Uplink()):
            return ""
    except NamespacesUnavailable as problem:
        return str(problem)


WHY_NOT = why_not()
needs_namespaces = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def leftovers() -> list[str]:
    listed = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    listed += subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"\bedge{os.getpid()}\S*", listed)


@contextmanager
def echo(space: Namespaces, name: str) -> Iterator[str]:
    """Endpoint of a data plane inside a namespace that replies what it receives."""
    arguments = (f"tcp://{space.address(name)}:0", THERE.public, THERE.secret, HERE.public)
    command = [*space.prefix(name), sys.executable, "-m", "tests.fakes.echo_plane", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def plane(endpoint: str) -> Iterator[DataPlane]:
    """Connected to it from outside."""
    with closing(DataPlane(HERE, AllowList({THERE.public: "there"}), "tcp://127.0.0.1:0")) as here:
        here.connect("there", endpoint, THERE.public)
        assert here.poll(5000) == [Connected("there", again=False)]
        yield here


@needs_namespaces
def test_what_leaves_a_namespace_leaves_at_its_rate() -> None:
    size = 500_000
    with Namespaces(["d1", "d2"], Uplink(RATE)) as space, echo(space, "d2") as endpoint, plane(endpoint) as here:
        assert endpoint.startswith(f"tcp://{space.address('d2')}:")
        started_s = time.monotonic()
        assert here.send("there", [b"", bytes(size)])
        [reply] = here.poll(10_000)
        assert isinstance(reply, Replied)
        took_s = time.monotonic() - started_s
        # One way only: what goes into a namespace was shaped by whoever sent it. 3 to 6 % are headers of TCP and IP.
        assert size / RATE < took_s < 1.25 * size / RATE
    assert leftovers() == []


@needs_namespaces
def test_a_link_that_lost_everything_for_5_s_is_used_again_within_one() -> None:
    """Nobody answers a SYN meanwhile: the next attempt after the link's return has to come soon."""
    with Namespaces(["d1"], Uplink(RATE)) as space, echo(space, "d1") as endpoint, plane(endpoint) as here:
        space.stall("d1")
        stalled_s = time.monotonic()
        here.send("there", [b"", b"lost"])
        assert here.poll(4500) == [Disconnected("there")]
        assert 1.0 < time.monotonic() - stalled_s < 3.0
        assert here.poll(int(1e3 * (stalled_s + STALL_S - time.monotonic()))) == []
        space.resume("d1")
        returned_s = time.monotonic()
        assert here.poll(5000) == [Connected("there", again=True)]
        assert here.send("there", [b"", b"kept"])
        [reply] = here.poll(5000)
        assert isinstance(reply, Replied)
        late_s = time.monotonic() - returned_s
        print(f"{late_s:.3f} s after the link's return")
        assert bytes(reply.parts[-1]) == b"kept"
        assert late_s < 1.0


@needs_namespaces
def test_what_cannot_be_made_leaves_nothing() -> None:
    with pytest.raises(NamespacesUnavailable, match="tbf"), Namespaces(["d1"], Uplink(bytes_per_s=1e30)):
        pass
    assert leftovers() == []
    with Namespaces(["d1"], Uplink()) as first:
        assert leftovers()
        with Namespaces(["d1"], Uplink()) as second:
            assert second.here != first.here
            assert second.prefix("d1") != first.prefix("d1")
        assert leftovers()
    assert leftovers() == []


@needs_namespaces
def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not() -> None:
    script = (
        "import os\nfrom edgectl.netns import Namespaces, Uplink\n"
        "Namespaces(['a', 'b'], Uplink()).__enter__()\nprint(os.getpid(), flush=True)\ninput()\nos._exit(0)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = process.stdout.readline().strip()
        netns.remove_leftovers()
        listed = ["ip", "netns", "list"]
        assert f"edge{number}a-1" in subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        process.communicate("\n")
    netns.remove_leftovers()
    assert f"edge{number}a-" not in subprocess.run(listed, capture_output=True, text=True, check=True).stdout


def test_who_is_not_root_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NamespacesUnavailable, match=r"need root.*\[\[links\]\]"), Namespaces(["d1"], Uplink()):
        pass


def test_missing_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(NamespacesUnavailable, match="ip and tc: install the package iproute2"):
        netns.check_machine()


def test_a_kernel_without_netem_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 2, "", "Error: Specified qdisc kind is unknown.\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(NamespacesUnavailable, match=r"kind is unknown\.; this kernel has no such"):
        netns._run(["tc", "qdisc", "replace", "dev", "eth0", "root", "netem"])


def test_the_bucket_lets_whole_frames_through() -> None:
    assert token_bucket(Uplink(RATE, burst_bytes=100)) == [
        *("tbf", "rate", "10000000bit", "burst", "5000", "limit", "262144")
    ]
    fast = token_bucket(Uplink(125e6, burst_bytes=1 << 20))
    assert fast == ["tbf", "rate", "1000000000bit", "burst", "1048576", "limit", "12500000"]


@pytest.mark.parametrize("names", [[], ["a", "a"], [str(number) for number in range(netns.MAX_NAMESPACES + 1)]])
def test_names_are_unlike_and_few_enough(names: list[str]) -> None:
    with pytest.raises(ValueError, match="names of namespaces"):
        Namespaces(names, Uplink())
