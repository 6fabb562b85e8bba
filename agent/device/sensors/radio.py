"""Wireless interfaces by what their drivers count: `iw dev NAME station dump` where there is one, else
/proc/net/wireless.

Nothing here waits for a program: one call starts it, a later one reads what it wrote. Both texts are parsed by pure
functions that take anything and never raise; what is not told is None and says why.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from agent.device.sensors.sysfs import Missing, matching, read_text
from agent.wire.link_report import RadioObservation

IW = "iw"
INTERVAL_S = 2.0
"""Between two runs of the program, which takes milliseconds: a radio changes faster, but a mean over some packets is
what a decision can use."""
LONGEST_RUN_S = 2.0
"""A program that takes longer is ended."""
MAX_OUTPUT_BYTES = 256 << 10
"""Some hundred stations of an access point; more is not read."""
MAX_INTERFACES = 8
"""Of one device; further ones are not asked."""
FIELDS = (
    "signal_dbm",
    "tx_bitrate_bits_per_s",
    "tx_packets",
    "tx_retries",
    "tx_failed",
    "rx_packets",
    "beacon_losses",
)
NOT_TOLD = "the driver does not tell"

_STATION = re.compile(r"^Station [0-9a-fA-F:]{17} \(on (?P<interface>[^)\s]+)\)", re.MULTILINE)
_LINE = re.compile(r"^[ \t]+(?P<name>[a-z][a-z /]*):[ \t]*(?P<value>\S.*)$", re.MULTILINE)
_COUNTS = {
    "tx packets": "tx_packets",
    "tx retries": "tx_retries",
    "tx failed": "tx_failed",
    "rx packets": "rx_packets",
    "beacon loss": "beacon_losses",
}
_COUNT = re.compile(r"[0-9]{1,18}$")
_SIGNAL = re.compile(r"(-?[0-9]{1,3})\b.*dBm")
_BITRATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) MBit/s")
_WIRELESS = re.compile(
    r"^\s*(?P<interface>[^\s:]+):\s+[0-9a-fA-F]+\s+-?[0-9]+\.?\s+(?P<level>-?[0-9]+)\.?\s+-?[0-9]+\.?"
    r"(?:\s+[0-9]+){3}\s+(?P<retry>[0-9]+)\s+[0-9]+\s+(?P<beacon>[0-9]+)",
    re.MULTILINE,
)


def wireless_interfaces(root: Path = Path("/")) -> tuple[str, ...]:
    """Names of the interfaces the kernel calls wireless, at most MAX_INTERFACES."""
    found = {
        path.parent.name for name in ("phy80211", "wireless") for path in matching(root, f"sys/class/net/*/{name}")
    }
    return tuple(sorted(found)[:MAX_INTERFACES])


def parse_station_dump(text: str, interface: str) -> RadioObservation:
    """What `iw dev INTERFACE station dump` says: of its access point, or of all stations of one together."""
    starts = [match for match in _STATION.finditer(text) if match["interface"] == interface]
    if not starts:
        return _nothing(interface, IW, "associated with no network")
    every = [match.start() for match in _STATION.finditer(text)]
    parts = [text[match.start() : min((at for at in every if at > match.start()), default=None)] for match in starts]
    stations = [_station(part) for part in parts]
    values: dict[str, int | float] = {}
    for name in _COUNTS.values():
        told = [station[name] for station in stations if name in station]
        if len(told) == len(stations):
            values[name] = int(sum(told))
    missing = {name: NOT_TOLD for name in FIELDS if name not in values}
    for name in ("signal_dbm", "tx_bitrate_bits_per_s"):
        if len(stations) > 1:
            missing[name] = f"an access point of {len(stations)} stations"
        elif name in stations[0]:
            values[name] = stations[0][name]
            del missing[name]
    return replace(RadioObservation(interface, IW, missing=missing), **values)


def parse_proc_wireless(text: str) -> dict[str, RadioObservation]:
    """/proc/net/wireless by interface: a level where it is in dBm, and what was given up."""
    found = {}
    for match in _WIRELESS.finditer(text):
        level, missing = int(match["level"]), dict.fromkeys(FIELDS, "told by iw only; install it")
        values = {"tx_failed": int(match["retry"]), "beacon_losses": int(match["beacon"])}
        # A driver without levels in dBm counts from 0 up, and -256 is none.
        signal = float(level) if -200 < level < 0 else None
        if signal is None:
            missing["signal_dbm"] = NOT_TOLD
        else:
            del missing["signal_dbm"]
        for name in values:
            del missing[name]
        radio = RadioObservation(match["interface"], "wireless", signal_dbm=signal, missing=missing)
        found[match["interface"]] = replace(radio, **values)
    return found


def _station(text: str) -> dict[str, int | float]:
    """The fields of one station that its text has."""
    told: dict[str, int | float] = {}
    for match in _LINE.finditer(text):
        name, value = match["name"], match["value"].strip()
        if name in _COUNTS and _COUNT.match(value):
            told[_COUNTS[name]] = int(value)
        elif name == "signal" and (signal := _SIGNAL.match(value)):
            told["signal_dbm"] = float(signal[1])
        elif name == "tx bitrate" and (rate := _BITRATE.match(value)):
            told["tx_bitrate_bits_per_s"] = float(rate[1]) * 1e6
    return told


def _nothing(interface: str, source: str, reason: str) -> RadioObservation:
    return RadioObservation(interface, source, missing=dict.fromkeys(FIELDS, reason))


@dataclass(slots=True)
class _Run:
    """The program at work for one interface."""

    process: subprocess.Popen[bytes]
    started_s: float
    output: bytearray = field(default_factory=bytearray)
    is_given_up: bool = False
    """It was killed. One that hangs in its driver ends when the driver lets it; until then no other is started."""


class RadioSensor:
    """The wireless interfaces of this device; for a device without one, nothing at no cost. Never raises."""

    def __init__(self, root: Path = Path("/"), program: str | None = None) -> None:
        """`program` takes the place of `iw`; None looks for it on PATH."""
        self._root = root
        self._program = program or shutil.which(IW)
        self._asked_s: float | None = None
        self._running: dict[str, _Run] = {}
        self._told: dict[str, RadioObservation] = {}

    def sample(self, now_s: float) -> tuple[RadioObservation, ...]:
        """What is known by now, by interface; `now_s` is CLOCK_MONOTONIC at the call."""
        self._collect(now_s)
        if self._asked_s is None or now_s - self._asked_s >= INTERVAL_S:
            self._asked_s = now_s
            self._ask(now_s)
        return tuple(radio for _, radio in sorted(self._told.items()))

    def close(self) -> None:
        """End the programs that run, and wait a little for them; may be called again."""
        for run in self._running.values():
            _kill(run.process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(LONGEST_RUN_S)
        self._running.clear()

    def _ask(self, now_s: float) -> None:
        interfaces = wireless_interfaces(self._root)
        self._told = {name: radio for name, radio in self._told.items() if name in interfaces}
        if self._program is None:
            self._told = _by_kernel(self._root, interfaces)
            return
        for interface in interfaces:
            if interface not in self._running:
                self._start(self._program, interface, now_s)

    def _start(self, program: str, interface: str, now_s: float) -> None:
        try:
            process = subprocess.Popen(
                [program, "dev", interface, "station", "dump"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as problem:
            reason = f"{program} cannot be started: {problem.strerror or problem}"
            self._told[interface] = _nothing(interface, IW, reason)
            return
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._running[interface] = _Run(process, now_s)

    def _collect(self, now_s: float) -> None:
        for interface, run in list(self._running.items()):
            # The status first: what an ended program wrote is all there to be read.
            status = run.process.poll()
            if run.is_given_up:
                if status is not None:
                    del self._running[interface]
                continue
            is_too_long = not _read(run)
            if status is None and not is_too_long and now_s - run.started_s < LONGEST_RUN_S:
                continue
            _kill(run.process)
            run.is_given_up = True
            if status is not None:
                del self._running[interface]
            if is_too_long:
                radio = _nothing(interface, IW, f"iw wrote more than {MAX_OUTPUT_BYTES} bytes")
            elif status is None:
                radio = _nothing(interface, IW, f"iw took longer than {LONGEST_RUN_S:g} s")
            elif status != 0:
                radio = _nothing(interface, IW, f"iw ended with status {status}")
            else:
                radio = parse_station_dump(run.output.decode("utf-8", "replace"), interface)
            self._told[interface] = radio


def _by_kernel(root: Path, interfaces: Sequence[str]) -> dict[str, RadioObservation]:
    told: Mapping[str, RadioObservation] = {}
    reason = "associated with no network, or its driver knows no /proc/net/wireless"
    if interfaces:
        try:
            told = parse_proc_wireless(read_text(root / "proc/net/wireless"))
        except Missing as missing:
            reason = f"there is no iw, and {missing}"
    return {name: told.get(name) or _nothing(name, "wireless", reason) for name in interfaces}


def _read(run: _Run) -> bool:
    """Take what is there; False when it is too much."""
    assert run.process.stdout is not None
    while len(run.output) <= MAX_OUTPUT_BYTES:
        try:
            part = os.read(run.process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        if not part:
            return True
        run.output += part
    return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Without waiting for its end: a driver that hangs would hang this device's heartbeats too."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdout is not None:
        process.stdout.close()
