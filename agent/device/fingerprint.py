"""What decides how fast this machine is now: board, release, power mode, governor, clocks, temperature, driver.

A profile carries it, so that one taken in another power mode or release is noticed. Files only, no root; what cannot
be read is None with its reason.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from pathlib import Path

from agent.device.sensors.host import board_model, memory_total_bytes
from agent.device.sensors.jetson import board_description, gpu_devfreq, memory_clock_mhz
from agent.device.sensors.rails import module_of
from agent.device.sensors.sample import Sample
from agent.device.sensors.sysfs import Missing, cpu_clock_mhz, matching, read_number, read_text, temperatures_c

JETPACK_OF_L4T = {
    "28.2": "3.2",
    "28.2.1": "3.2.1",
    "28.3": "3.3",
    "32.1": "4.2",
    "32.2": "4.2.1",
    "32.2.1": "4.2.2",
    "32.2.3": "4.2.3",
    "32.3.1": "4.3",
    "32.4.2": "4.4 DP",
    "32.4.3": "4.4",
    "32.4.4": "4.4.1",
    "32.5": "4.5",
    "32.5.1": "4.5.1",
    "32.5.2": "4.5.1",
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "34.1": "5.0 DP",
    "34.1.1": "5.0.1 DP",
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4",
    "35.6.1": "5.1.5",
    "36.2": "6.0 DP",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
"""Release of Jetson Linux, a last `.0` dropped → JetPack, from NVIDIA's archive of both. Not in it: no guess."""

Values = dict[str, str | float | None]


def fingerprint(
    root: Path = Path("/"), *, board: str = "", sample: Sample | None = None
) -> tuple[Values, dict[str, str]]:
    """(values, reason for every value that is None).

    `sample` is a fresh one of this machine's sensor: it may know clocks and temperatures that files do not.
    `board` names the board where there is no device tree.
    """
    read = _Reader()
    description = board_description(root, board)
    read.take("board", lambda: board or board_model(root))
    read.take("module", lambda: _module(description))
    l4t = read.take("l4t", lambda: l4t_release(root))
    read.take("jetpack", lambda: _jetpack(l4t))
    read.take("power_mode", lambda: power_mode(root)[0])
    read.take("power_mode_id", lambda: power_mode(root)[1])
    read.take("governor", lambda: _first_text(root, "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor"))
    read.take("cores_on", lambda: _cores_on(root))
    read.take("cpu_clock_mhz", lambda: cpu_clock_mhz(root), sample)
    read.take("cpu_min_clock_mhz", lambda: cpu_clock_mhz(root, "scaling_min_freq"))
    read.take("cpu_max_clock_mhz", lambda: cpu_clock_mhz(root, "scaling_max_freq"))
    for name, file in (("gpu_clock", "cur_freq"), ("gpu_min_clock", "min_freq"), ("gpu_max_clock", "max_freq")):
        read.take(f"{name}_mhz", lambda file=file: read_number(_gpu(root) / file) / 1e6, sample)  # type: ignore[misc]
    read.take("gpu_governor", lambda: read_text(_gpu(root) / "governor"))
    read.take("memory_clock_mhz", lambda: memory_clock_mhz(root), sample)
    read.take("memory", lambda: _memory_kind(root, description))
    read.take("memory_total_bytes", lambda: float(memory_total_bytes(root)))
    read.take("gpu", lambda: _gpu_model(root))
    read.take("gpu_driver", lambda: _gpu_driver(root))
    read.take("fan_share", lambda: _fan_share(root))
    read.take("kernel", lambda: _kernel(root))
    read.take("temperature_c", lambda: _hottest_c(root, sample))
    return read.values, read.missing


def parse_l4t_release(text: str) -> str | None:
    """36.4.3 of `# R36 (release), REVISION: 4.3, GCID: …`, the first line of /etc/nv_tegra_release."""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", text)
    return f"{match[1]}.{match[2]}" if match else None


def l4t_release(root: Path) -> str:
    """Raises Missing."""
    try:
        text = read_text(root / "etc/nv_tegra_release")
    except Missing:
        raise Missing("there is no /etc/nv_tegra_release: no Jetson, or a container that does not see it") from None
    release = parse_l4t_release(text)
    if release is None:
        raise Missing(f"/etc/nv_tegra_release begins with {text[:60]!r}, which names no release")
    return release


def jetpack_of(l4t: str) -> str | None:
    """JetPack of a release of Jetson Linux like 36.4.3; None when the table does not know it."""
    return JETPACK_OF_L4T.get(l4t) or JETPACK_OF_L4T.get(l4t.removesuffix(".0"))


def power_mode(root: Path) -> tuple[str, float]:
    """(name, id) of the present nvpmodel mode. Ids mean other modes on other boards: only names compare.

    nvpmodel writes its mode into a status file and its configuration names the modes; both are open to all, unlike
    `nvpmodel -q`. Raises Missing.
    """
    try:
        status = read_text(root / "var/lib/nvpmodel/status")
    except Missing:
        raise Missing("nvpmodel has left no /var/lib/nvpmodel/status") from None
    chosen = re.search(r"pmode:\s*(\d+)", status)
    if chosen is None:
        raise Missing(f"/var/lib/nvpmodel/status holds {status[:40]!r}, no mode")
    mode = int(chosen[1])
    names = parse_power_modes(read_text(root / "etc/nvpmodel.conf"))
    if mode not in names:
        raise Missing(f"/etc/nvpmodel.conf names no mode {mode}")
    return names[mode], float(mode)


def parse_power_modes(text: str) -> dict[int, str]:
    """Names of the modes of an nvpmodel.conf by their ids: `< POWER_MODEL ID=0 NAME=15W >`, in either order."""
    modes = {}
    for attributes in re.findall(r"^\s*<\s*POWER_MODEL\s+([^>\n]*)>", text, flags=re.MULTILINE):
        number, name = re.search(r"\bID=(\d+)", attributes), re.search(r"\bNAME=(\S+)", attributes)
        if number and name:
            modes[int(number[1])] = name[1]
    return modes


class _Reader:
    """Collects values, and the reasons of those that are None."""

    def __init__(self) -> None:
        self.values: Values = {}
        self.missing: dict[str, str] = {}

    def take(self, name: str, read: Callable[[], str | float], sample: Sample | None = None) -> str | float | None:
        """What `read` gives, else the field of that name of the sample."""
        value: str | float | None = None
        reason = ""
        try:
            value = read()
        except Missing as problem:
            reason = str(problem)
        if value is None:
            value = getattr(sample, name, None)
        self.values[name] = value
        if value is None:
            self.missing[name] = reason
        return value


def _module(description: str) -> str:
    module = module_of(description)
    if module is None:
        raise Missing("no Jetson module is known by this name")
    return module


def _jetpack(l4t: object) -> str:
    if not isinstance(l4t, str):
        raise Missing("the release of Jetson Linux is unknown")
    jetpack = jetpack_of(l4t)
    if jetpack is None:
        raise Missing(f"no JetPack is known for Jetson Linux {l4t}")
    return jetpack


def _first_text(root: Path, folder: str, pattern: str) -> str:
    for path in matching(root / folder, pattern):
        return read_text(path)
    raise Missing("the kernel has no cpufreq here")


def _cores_on(root: Path) -> float:
    """Cores the power mode leaves on: `0-3,6` is five."""
    total = 0
    text = read_text(root / "sys/devices/system/cpu/online")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise Missing(f"cpu/online holds {text[:40]!r}")
        total += int(last or first) - int(first) + 1
    return float(total)


def _gpu(root: Path) -> Path:
    gpu = gpu_devfreq(root)
    if gpu is None:
        raise Missing("the kernel shows no GPU under devfreq")
    return gpu


def _memory_kind(root: Path, description: str) -> str:
    """Whether a GPU's weights take from the same memory as everything else does."""
    if module_of(description) is not None or "tegra" in description.lower():
        return "shared by CPU and GPU"
    if (root / "proc/driver/nvidia/gpus").is_dir():
        return "separate for CPU and GPU"
    raise Missing("no GPU that is known")


def _gpu_model(root: Path) -> str:
    for path in matching(root / "proc/driver/nvidia/gpus", "*/information"):
        match = re.search(r"^Model:\s*(.+)$", read_text(path), flags=re.MULTILINE)
        if match:
            return match[1].strip()
    raise Missing("there is no discrete NVIDIA GPU")


def _gpu_driver(root: Path) -> str:
    text = read_text(root / "proc/driver/nvidia/version")
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    if match is None:
        raise Missing("/proc/driver/nvidia/version names no version")
    return match[1]


def _fan_share(root: Path) -> float:
    for monitor in matching(root / "sys/class/hwmon", "*"):
        if (monitor / "pwm1").exists() and "fan" in read_text(monitor / "name"):
            return read_number(monitor / "pwm1") / 255
    raise Missing("the kernel shows no fan")


def _kernel(root: Path) -> str:
    try:
        return read_text(root / "proc/sys/kernel/osrelease")
    except Missing:
        return platform.release()


def _hottest_c(root: Path, sample: Sample | None) -> float:
    degrees, reasons = temperatures_c(root)
    hottest = Sample(taken_s=0.0, source="", temperatures_c=degrees).hottest_c
    if hottest is None and sample is not None:
        hottest = sample.hottest_c
    if hottest is None:
        raise Missing(reasons["temperatures_c"])
    return hottest
