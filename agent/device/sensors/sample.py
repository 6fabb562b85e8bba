"""One reading of a device's sensors, and what every sensor is.

A value that could not be read is None (or absent from a mapping) and `missing` says why, under the field's name; it is
never 0. The sources behind it are listed in docs/sensors.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

POWER = "power_w"
"""The key of `missing` that says why there is no power: the one reason others pass on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one source said at one moment."""

    taken_s: float
    """CLOCK_MONOTONIC when the values were current: the time of the call, or of a line that came earlier."""
    source: str
    """sysfs, tegrastats, jtop, nvml or host."""
    rails_mw: tuple[tuple[str, float], ...] = ()
    """Power rails in the order of the source, instantaneous, signed; names may repeat."""
    power_w: float | None = None
    """Of what `covers` names; for a Jetson the sum of its board's total rails."""
    energy_j: float | None = None
    """A counter that only grows while the sensor lives, where there is one; its differences are energy."""
    covers: str = ""
    """What `power_w` and `energy_j` are the power and energy of: "module", "GPU" or "processor"."""
    gpu_load: float | None = None
    """Share of time, 0 to 1."""
    gpu_clock_mhz: float | None = None
    cpu_clock_mhz: float | None = None
    """Of the fastest core that is on."""
    memory_clock_mhz: float | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    over_current_events: dict[str, int] = field(default_factory=dict)
    """Throttling by over-current since the sensor was made, by counter."""
    missing: dict[str, str] = field(default_factory=dict)
    """Field, or `temperatures_c.<name>`, → why it has no value."""
    period_s: float = 0.0
    """The least time between two new values of this source; 0 for one that is read afresh each time."""

    @property
    def hottest_c(self) -> float | None:
        """Of all sensors but the PMIC's, which on a Jetson reads a fixed 50 or 100."""
        return max((c for name, c in self.temperatures_c.items() if not name.startswith("pmic")), default=None)


class Sensor(Protocol):
    """A source of samples. Neither method raises: what goes wrong becomes a reason in `missing`."""

    def sample(self, now_s: float) -> Sample:
        """The present values; `now_s` is CLOCK_MONOTONIC at the call."""
        ...

    def close(self) -> None:
        """Ends processes and threads of the sensor; may be called again."""
        ...


def no_sample(now_s: float, source: str, reason: str) -> Sample:
    """A sample in which everything is missing for one reason."""
    fields = (POWER, "gpu_load", "gpu_clock_mhz", "cpu_clock_mhz", "memory_clock_mhz", "temperatures_c")
    return Sample(taken_s=now_s, source=source, missing=dict.fromkeys(fields, reason))
