"""A Jetson's power rails, GPU, temperatures and over-current counters from the kernel's files; needs no root.

Releases 35 and later show the INA3221 monitors under hwmon, release 32 under iio. Rails are read at every sample, what
changes slowly or costs more at most twice a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from agent.device.sensors.rails import module_of, total_power_w
from agent.device.sensors.sample import POWER, Sample
from agent.device.sensors.sysfs import Missing, cpu_clock_mhz, matching, read_number, read_text, temperatures_c

SLOW_PERIOD_S = 0.5
GPU_FOLDERS = ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b", "*.gm20b", "gpu-gpc-0", "gpu-*")
"""Under /sys/class/devfreq: by address and, to release 35, the name of the chip; on Thor by unit."""

EMC_CLOCKS = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")


class RailFiles(NamedTuple):
    """Where one rail's power is read: directly in units of `watt` per watt, or as voltage and current."""

    name: str
    power: Path | None
    per_mw: float
    voltage_mv: Path | None = None
    current_ma: Path | None = None

    def read_mw(self) -> float:
        """Raises Missing."""
        if self.power is not None:
            return read_number(self.power) / self.per_mw
        if self.voltage_mv is None or self.current_ma is None:
            raise Missing("there is neither a power nor a voltage and a current")
        return read_number(self.voltage_mv) * read_number(self.current_ma) / 1000


def board_description(root: Path, board: str = "") -> str:
    """The owner's name of the board, else what the device tree says of model and part numbers; may be empty."""
    if board:
        return board
    parts = []
    for name in ("model", "compatible"):
        try:
            parts.append(read_text(root / "proc/device-tree" / name))
        except Missing:
            continue
    return " ".join(parts)


def gpu_devfreq(root: Path) -> Path | None:
    """The folder of the GPU's clock, None where the kernel does not scale it."""
    return next((path for name in GPU_FOLDERS for path in matching(root / "sys/class/devfreq", name)), None)


def find_rails(root: Path, board: str) -> tuple[RailFiles, ...]:
    """The power rails of all monitors, in the order of their addresses; unconnected channels are left out."""
    drivers = root / "sys/bus/i2c/drivers"
    rails: list[RailFiles] = []
    for monitor in matching(drivers, "ina*/*/hwmon/hwmon*"):
        rails += _labelled(monitor) or _single(monitor, board)
    for monitor in matching(drivers, "ina3221x/*/iio*device*"):
        for label in matching(monitor, "rail_name_*"):
            channel = label.name.removeprefix("rail_name_")
            rails += _if_connected(label, RailFiles("", monitor / f"in_power{channel}_input", 1.0))
    return tuple(rails)


class JetsonSensor:
    """See the module. `board` names the board where there is no device tree."""

    def __init__(self, root: Path = Path("/"), board: str = "") -> None:
        self._root = root
        self._board = board_description(root, board)
        self._rails = find_rails(root, self._board)
        self._gpu = gpu_devfreq(root)
        self._first_counts = self._over_current_counts()
        self._slow: Sample | None = None

    @property
    def is_there(self) -> bool:
        """Whether this machine shows anything of a Jetson."""
        return bool(self._rails or self._gpu)

    def sample(self, now_s: float) -> Sample:
        missing: dict[str, str] = {}
        rails_mw = []
        for rail in self._rails:
            try:
                rails_mw.append((rail.name, rail.read_mw()))
            except Missing as problem:
                missing[f"rails_mw.{rail.name}"] = str(problem)
        power_w, reason = total_power_w(self._board, rails_mw)
        if power_w is None:
            missing[POWER] = reason if self._rails else "the kernel shows no power monitor (ina3221)"
        if self._slow is None or now_s - self._slow.taken_s >= SLOW_PERIOD_S:
            self._slow = self._sample_slowly(now_s)
        return replace(
            self._slow,
            taken_s=now_s,
            rails_mw=tuple(rails_mw),
            power_w=power_w,
            missing=self._slow.missing | missing,
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _sample_slowly(self, now_s: float) -> Sample:
        read = _Reader()
        degrees, reasons = temperatures_c(self._root)
        read.missing.update(reasons)
        counts = self._over_current_counts()
        return Sample(
            taken_s=now_s,
            source="sysfs",
            covers="module",
            gpu_load=read.value("gpu_load", self._gpu_load),
            gpu_clock_mhz=read.value("gpu_clock_mhz", self._gpu_clock_mhz),
            cpu_clock_mhz=read.value("cpu_clock_mhz", lambda: cpu_clock_mhz(self._root)),
            memory_clock_mhz=read.value("memory_clock_mhz", lambda: memory_clock_mhz(self._root)),
            temperatures_c=degrees,
            over_current_events={
                name: count - self._first_counts.get(name, 0) if count >= self._first_counts.get(name, 0) else count
                for name, count in counts.items()
            },
            missing=read.missing,
        )

    def _gpu_load(self) -> float:
        if self._gpu is None:
            raise Missing("the kernel shows no GPU under devfreq")
        if not (self._gpu / "device/load").exists():
            raise Missing("the kernel gives no GPU load on this board; NVML may")
        return read_number(self._gpu / "device/load") / 1000

    def _gpu_clock_mhz(self) -> float:
        if self._gpu is None:
            raise Missing("the kernel shows no GPU under devfreq")
        return read_number(self._gpu / "cur_freq") / 1e6

    def _over_current_counts(self) -> dict[str, int]:
        """Throttling events since boot: oc1 undervoltage, oc2 average, oc3 instantaneous over-current."""
        counts = {}
        for monitor in matching(self._root / "sys/class/hwmon", "*"):
            try:
                if read_text(monitor / "name") != "soctherm_oc":
                    continue
                for path in matching(monitor, "oc*_event_cnt"):
                    counts[path.name.removesuffix("_event_cnt")] = int(read_number(path))
            except Missing:
                continue
        return counts


def memory_clock_mhz(root: Path) -> float:
    """Of the memory controller (EMC), from debugfs. Raises Missing: mostly only root may read it."""
    for place in EMC_CLOCKS:
        with contextlib.suppress(Missing):
            return read_number(root / place) / 1e6
    raise Missing("the memory clock is in debugfs, which only root may read")


@dataclass(slots=True)
class _Reader:
    """Collects the reasons of what cannot be read."""

    missing: dict[str, str] = field(default_factory=dict)

    def value(self, name: str, read: Callable[[], float]) -> float | None:
        try:
            return read()
        except Missing as reason:
            self.missing[name] = str(reason)
            return None


def _labelled(monitor: Path) -> list[RailFiles]:
    """The channels of an INA3221: each has a label, a voltage and a current."""
    rails = []
    for label in matching(monitor, "in[0-9]*_label"):
        channel = label.name.removeprefix("in").removesuffix("_label")
        files = RailFiles("", None, 1.0, monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
        rails += _if_connected(label, files)
    return rails


def _single(monitor: Path, board: str) -> list[RailFiles]:
    """A monitor of one rail without a label, like the INA238 at the input of a Thor."""
    name = "VIN" if module_of(board) == "thor" else monitor.parent.parent.name
    for label in (monitor / "label", monitor / "name"):
        try:
            text = read_text(label)
        except Missing:
            continue
        if label.name == "label" or module_of(board) != "thor":
            name = text
            break
    if (monitor / "power1_input").exists():
        return [RailFiles(name, monitor / "power1_input", 1000.0)]
    if (monitor / "curr1_input").exists() and (monitor / "in1_input").exists():
        return [RailFiles(name, None, 1.0, monitor / "in1_input", monitor / "curr1_input")]
    return []


def _if_connected(label: Path, files: RailFiles) -> list[RailFiles]:
    try:
        name = read_text(label)
    except Missing:
        return []
    if not name or name == "NC" or "sum of shunt" in name.lower():
        return []
    return [files._replace(name=name)]
