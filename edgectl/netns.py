"""Devices of one machine as far apart as a kernel can put them: a network namespace each, on links that are shaped.

Every namespace has one veth to a bridge of this machine. What leaves a device goes through a token bucket (tc-tbf) and,
where the kernel has it, a delay (tc-netem); what leaves the bridge for a device is not shaped, its sender's link was.
Needs root and the commands `ip` and `tc`. A link can be stalled: what is sent is lost without a word.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from types import TracebackType
from typing import Any

NETWORK = ipaddress.ip_network("198.18.0.0/15")
"""For benchmarks of devices in a laboratory (RFC 2544): nobody else's address."""
PREFIX_LENGTH = 24
MAX_NAMESPACES = 100
"""An interface's name has 15 characters: prefix, process id, letter, v and two digits."""
LEAST_BURST_BYTES = 5_000
"""tc-tbf lets nothing through that is longer than its bucket is deep: three Ethernet frames."""
LEAST_QUEUE_BYTES = 1 << 18
QUEUE_S = 0.1
"""How much may wait for its token: TCP slows down by what is dropped beyond."""
OUR_PREFIX = "edge"
"""Of every interface and namespace made here; the process id follows, so that those of dead ones can be told."""
PATIENCE_S = 20.0


class NamespacesUnavailable(Exception):
    """This machine or this person cannot have them; the text says why and what can be had instead."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """What leaves a namespace. Zeros: as fast as it goes, without delay."""

    bytes_per_s: float = 0.0
    burst_bytes: int = 0
    latency_ms: float = 0.0
    jitter_ms: float = 0.0


class Namespaces:
    """Context manager: namespaces of these names, in a network with this machine; nothing is left of them at exit.

    Raises NamespacesUnavailable without root, without the commands, or where the kernel refuses.
    """

    def __init__(self, names: Sequence[str], uplink: Uplink) -> None:
        if len(set(names)) != len(names) or not 1 <= len(names) <= MAX_NAMESPACES:
            raise ValueError(f"{len(names)} names of namespaces: 1 to {MAX_NAMESPACES}, all different")
        self._uplink = uplink
        self._bridge = ""
        self._indices = {name: index for index, name in enumerate(names)}
        self._network = ipaddress.ip_network("198.18.0.0/24")

    def __enter__(self) -> Namespaces:
        check_machine()
        remove_leftovers()
        try:
            self._network, self._bridge = free_network(), free_bridge()
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @property
    def here(self) -> str:
        """This machine's address, for those in the namespaces."""
        return str(self._network[1])

    def address(self, name: str) -> str:
        return str(self._network[2 + self._indices[name]])

    def prefix(self, name: str) -> list[str]:
        """What to put before a command that is to run inside."""
        return ["ip", "netns", "exec", self._namespace(name)]

    def stall(self, name: str) -> None:
        """Lose everything that leaves the namespace or comes for it."""
        for device in self._ends(name):
            _run(["tc", *device, "root", "blackhole"])

    def resume(self, name: str) -> None:
        """Let everything through again, as shaped."""
        inside, outside = self._ends(name)
        _run(["tc", *_deleting(outside), "root"])
        _run(["tc", *_deleting(inside), "root"])
        self._shape(name)

    def _make(self) -> None:
        _run(["ip", "link", "add", self._bridge, "type", "bridge"])
        _run(["ip", "address", "add", f"{self.here}/{PREFIX_LENGTH}", "dev", self._bridge])
        _run(["ip", "link", "set", self._bridge, "up"])
        for name, index in self._indices.items():
            namespace, outside = self._namespace(name), f"{self._bridge}v{index}"
            _run(["ip", "netns", "add", namespace])
            _run(["ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace])
            _run(["ip", "link", "set", outside, "master", self._bridge, "up"])
            inside = ["ip", "-n", namespace]
            _run([*inside, "address", "add", f"{self.address(name)}/{PREFIX_LENGTH}", "dev", "eth0"])
            _run([*inside, "link", "set", "lo", "up"])
            _run([*inside, "link", "set", "eth0", "up"])
            self._shape(name)

    def _shape(self, name: str) -> None:
        """netem outside and the bucket inside it, the order that tc-netem(8) gives."""
        inside, _ = self._ends(name)
        place = ["root"]
        if self._uplink.latency_ms or self._uplink.jitter_ms:
            delay = [f"{self._uplink.latency_ms:g}ms", f"{self._uplink.jitter_ms:g}ms"]
            _run(["tc", *inside, *place, "handle", "1:", "netem", "limit", "100000", "delay", *delay])
            place = ["parent", "1:1"]
        if self._uplink.bytes_per_s:
            _run(["tc", *inside, *place, *token_bucket(self._uplink)])

    def _remove(self) -> None:
        if self._bridge:
            _remove(self._bridge)
            self._bridge = ""

    def _namespace(self, name: str) -> str:
        return f"{self._bridge}-{self._indices[name]}"

    def _ends(self, name: str) -> tuple[list[str], list[str]]:
        """Arguments of tc for the link's two ends: inside, and at the bridge."""
        inside = ["-n", self._namespace(name), "qdisc", "replace", "dev", "eth0"]
        return inside, ["qdisc", "replace", "dev", f"{self._bridge}v{self._indices[name]}"]


def token_bucket(uplink: Uplink) -> list[str]:
    """The words of tc-tbf(8) for a rate."""
    burst = max(uplink.burst_bytes, LEAST_BURST_BYTES)
    queue = max(LEAST_QUEUE_BYTES, int(QUEUE_S * uplink.bytes_per_s), burst)
    return ["tbf", "rate", f"{8 * uplink.bytes_per_s:.0f}bit", "burst", str(burst), "limit", str(queue)]


def check_machine() -> None:
    """Raises NamespacesUnavailable unless network namespaces can be made here."""
    if os.geteuid() != 0:
        raise NamespacesUnavailable(
            "network namespaces need root: run it with sudo, or emulate the links instead ([[links]] in cluster.toml)"
        )
    missing = [command for command in ("ip", "tc") if shutil.which(command) is None]
    if missing:
        raise NamespacesUnavailable(
            f"network namespaces need the command {' and '.join(missing)}: install the package iproute2"
        )


def free_network() -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network of 256 addresses that no interface here has one of."""
    taken = [
        ipaddress.ip_address(address["local"])
        for interface in _listed(["ip", "-j", "-4", "address", "show"])
        for address in interface.get("addr_info", ())
    ]
    for network in NETWORK.subnets(new_prefix=PREFIX_LENGTH):
        if not any(address in network for address in taken):
            return network
    raise NamespacesUnavailable(f"every part of {NETWORK} is in use on this machine")


def free_bridge() -> str:
    """A name for a further bridge of this process."""
    taken = {interface.get("ifname") for interface in _listed(["ip", "-j", "link", "show", "type", "bridge"])}
    for letter in ascii_lowercase:
        name = f"{OUR_PREFIX}{os.getpid()}{letter}"
        if name not in taken:
            return name
    raise NamespacesUnavailable(f"this process has made {len(ascii_lowercase)} networks of namespaces already")


def remove_leftovers() -> None:
    """Bridges and namespaces of processes that are no more: they were killed."""
    for interface in _listed(["ip", "-j", "link", "show", "type", "bridge"]):
        name = str(interface.get("ifname", ""))
        found = re.fullmatch(rf"{OUR_PREFIX}(\d+)[a-z]", name)
        if found is not None and not os.path.exists(f"/proc/{found[1]}"):
            _remove(name)


def _remove(bridge: str) -> None:
    """A bridge, its interfaces and namespaces, as far as they are there."""
    for namespace in _listed(["ip", "-j", "netns", "list"]):
        if str(namespace.get("name", "")).startswith(f"{bridge}-"):
            _run(["ip", "netns", "delete", namespace["name"]])
    for interface in _listed(["ip", "-j", "link", "show"]):
        if str(interface.get("ifname", "")).startswith(f"{bridge}v"):
            _run(["ip", "link", "delete", interface["ifname"]], may_fail=True)  # which its namespace's end took along
    if any(interface.get("ifname") == bridge for interface in _listed(["ip", "-j", "link", "show"])):
        _run(["ip", "link", "delete", bridge])


def _deleting(device: Sequence[str]) -> list[str]:
    return ["delete" if word == "replace" else word for word in device]


def _listed(command: Sequence[str]) -> list[dict[str, Any]]:
    """What a command of iproute2 prints as JSON; nothing at all for an empty list."""
    text = _run(command).strip()
    found: list[dict[str, Any]] = json.loads(text) if text else []
    return found


def _run(command: Sequence[str], *, may_fail: bool = False) -> str:
    """Standard output of a command. Raises NamespacesUnavailable with what it said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        raise NamespacesUnavailable(f"{' '.join(command)}: no end after {PATIENCE_S:g} s") from None
    if done.returncode and not may_fail:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        hint = "; this kernel has no such queueing discipline: without a latency it is not needed"
        raise NamespacesUnavailable(f"{' '.join(command)}: {said}{hint if 'netem' in command else ''}")
    return done.stdout
