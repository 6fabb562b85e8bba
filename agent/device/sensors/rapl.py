"""Energy of a PC's processors from the kernel's powercap counters (RAPL): packages and their memory.

The counters wrap around; here they are unwrapped into one that only grows. Since 2020 kernels let root alone read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from agent.device.sensors.sysfs import Missing, matching, read_number, read_text


class _Zone(NamedTuple):
    counter: Path
    range_uj: float


class RaplCounter:
    """The sum of all packages since it was made. Raises Missing where there is no counter, or only for root."""

    def __init__(self, root: Path) -> None:
        self._zones = tuple(_zones(root))
        if not self._zones:
            raise Missing("the kernel has no energy counter of the processor (RAPL)")
        self._last_uj = [read_number(zone.counter) for zone in self._zones]
        self._total_uj = 0.0

    def read_j(self) -> float:
        """Raises Missing."""
        for at, zone in enumerate(self._zones):
            now_uj = read_number(zone.counter)
            step_uj = now_uj - self._last_uj[at]
            self._total_uj += step_uj if step_uj >= 0 else step_uj + zone.range_uj
            self._last_uj[at] = now_uj
        return self._total_uj / 1e6


def _zones(root: Path) -> list[_Zone]:
    """Packages, and memory where it is counted beside its package; cores and GPU are parts of a package."""
    found = []
    for pattern, wanted in (("intel-rapl:[0-9]*", "package"), ("intel-rapl:[0-9]*", "dram")):
        for zone in matching(root / "sys/class/powercap", pattern):
            try:
                if read_text(zone / "name").startswith(wanted):
                    found.append(_Zone(zone / "energy_uj", read_number(zone / "max_energy_range_uj")))
            except Missing:
                continue
    return found
