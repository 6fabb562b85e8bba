"""This machine by what its kernel says: memory, cores, boot, board. Linux files first, psutil elsewhere.

Every file's text is parsed by a pure function; readers take the file system root so that tests can bring their own.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from agent.device.sensors.rapl import RaplCounter
from agent.device.sensors.sample import POWER, Sample
from agent.device.sensors.sysfs import Missing, cpu_clock_mhz, temperatures_c

_ROOT = Path("/")
RESERVE_MIN_BYTES = 1 << 30
RESERVE_SHARE = 0.08
"""What is left to the rest of the machine: on a small board 1 GiB, on a big one 8 % of its memory."""

SLOW_PERIOD_S = 1.0
"""Clocks and temperatures are read at most so often: they cost more than they change."""


def memory_available_bytes(root: Path = _ROOT) -> int:
    """MemAvailable: what can be had without swapping; swap is never counted."""
    return _memory(root)[0]


def memory_total_bytes(root: Path = _ROOT) -> int:
    return _memory(root)[1]


def model_memory_bytes(limit_bytes: int = 0, root: Path = _ROOT, *, held_bytes: int = 0) -> int:
    """What a model may take here: available memory less the reserve, or the owner's limit where that is less.

    `held_bytes` is what a loaded model holds now and the next one gets back.
    """
    available, total = _memory(root)
    available += held_bytes
    if limit_bytes:
        return min(limit_bytes, available)
    return max(0, available - max(RESERVE_MIN_BYTES, int(RESERVE_SHARE * total)))


def has_nvidia_device(root: Path = _ROOT) -> bool:
    """Whether the kernel shows an NVIDIA GPU: a discrete one, or a Jetson's. Says nothing of whether it works."""
    return any((root / "dev" / name).exists() for name in ("nvidiactl", "nvhost-gpu", "nvgpu", "nvhost-ctrl-gpu"))


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes by field name; lines without a number are left out."""
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        amount, *unit = value.split() or ["-"]
        if amount.isdecimal():
            fields[name] = int(amount) * (1024 if unit == ["kB"] else 1)
    return fields


def physical_cores(root: Path = _ROOT, usable: Iterable[int] | None = None) -> int:
    """Cores this process may run on, hardware threads of one core counted once."""
    if usable is None:
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    processors = list(usable)
    siblings = {_text(root / f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in processors}
    return len(siblings) if "" not in siblings else max(1, len(processors))


def boot_id(root: Path = _ROOT) -> str:
    """Equal for two processes exactly when they share a machine and a boot, and so its monotonic clock.

    Elsewhere than on Linux it is made of the machine's address and the time of its boot.
    """
    on_linux = _text(root / "proc/sys/kernel/random/boot_id")
    if on_linux:
        return on_linux
    import psutil  # Linux never needs it

    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{uuid.getnode()}-{int(psutil.boot_time())}"))


def board_model(root: Path = _ROOT) -> str:
    """The board as its device tree or firmware names it, else the processor architecture."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name"):
        if name := _text(root / path):
            return name
    return platform.machine()


class HostSensor:
    """A plain PC: processor clock and temperatures; energy of the processor where its counter may be read."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._slow: Sample | None = None
        self._last_energy: tuple[float, float] | None = None
        self._rapl: RaplCounter | None = None
        self._no_rapl = ""
        try:
            self._rapl = RaplCounter(root)
        except Missing as problem:
            self._no_rapl = str(problem)

    def sample(self, now_s: float) -> Sample:
        if self._slow is None or now_s - self._slow.taken_s >= SLOW_PERIOD_S:
            self._slow = self._sample_slowly(now_s)
        energy_j, reason = self._energy_j()
        power_w = None
        if energy_j is not None:
            before_s, before_j = self._last_energy or (now_s, energy_j)
            power_w = (energy_j - before_j) / (now_s - before_s) if now_s > before_s else None
            reason = "a counter gives power from its second reading on"
            self._last_energy = (now_s, energy_j)
        missing = self._slow.missing if power_w is not None else {**self._slow.missing, POWER: reason}
        return replace(self._slow, taken_s=now_s, energy_j=energy_j, power_w=power_w, missing=missing)

    def close(self) -> None:
        """Nothing is held open."""

    def _energy_j(self) -> tuple[float | None, str]:
        """(joules since the sensor was made, "") or (None, why not)."""
        if self._rapl is None:
            return None, self._no_rapl
        try:
            return self._rapl.read_j(), ""
        except Missing as problem:
            return None, str(problem)

    def _sample_slowly(self, now_s: float) -> Sample:
        missing = dict.fromkeys(("gpu_load", "gpu_clock_mhz"), "no GPU that can be asked")
        missing["memory_clock_mhz"] = "a PC does not tell"
        degrees, reasons = temperatures_c(self._root)
        if not degrees and self._root == _ROOT:
            degrees = _psutil_temperatures_c()
        missing |= {} if degrees else reasons
        clock_mhz = None
        try:
            clock_mhz = cpu_clock_mhz(self._root)
        except Missing as problem:
            clock_mhz = _psutil_clock_mhz() if self._root == _ROOT else None
            if clock_mhz is None:
                missing["cpu_clock_mhz"] = str(problem)
        return Sample(
            taken_s=now_s,
            source="host",
            covers="processor",
            cpu_clock_mhz=clock_mhz,
            temperatures_c=degrees,
            missing=missing,
        )


def _psutil_temperatures_c() -> dict[str, float]:
    """What the monitor chips say, where the kernel has no thermal zones."""
    import psutil

    read = getattr(psutil, "sensors_temperatures", dict)  # Linux and FreeBSD only
    return {name: max(entry.current for entry in entries) for name, entries in read().items() if entries}


def _psutil_clock_mhz() -> float | None:
    import psutil

    clock = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return float(clock.current) if clock is not None and clock.current else None


def _memory(root: Path) -> tuple[int, int]:
    """(available, total) bytes."""
    fields = parse_meminfo(_text(root / "proc/meminfo"))
    if "MemAvailable" in fields and "MemTotal" in fields:
        return fields["MemAvailable"], fields["MemTotal"]
    import psutil  # Linux never needs it

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _text(path: Path) -> str:
    """A small kernel file without its trailing NUL and newline, empty when it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
