"""Power of the phases of a measurement: at rest, decoding, prefill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agent.device.power import Energy
from agent.device.sensors.sample import Sample
from planner.profile import PowerProfile

REST_S = 1.0
"""Twenty readings of a sensor that is read twenty times a second."""

Interval = tuple[float, float]


def knows_power(sample: Sample) -> bool:
    """Whether a sensor with this sample has anything to integrate."""
    return sample.power_w is not None or sample.energy_j is not None


class Recorder(Protocol):
    """What is asked of `power.PowerRecorder`."""

    def energy(self, from_s: float, to_s: float) -> Energy: ...


@dataclass(slots=True)
class PowerWindows:
    """When the device did what, on the recorder's clock."""

    recorder: Recorder
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    resting: list[Interval] = field(default_factory=list)
    decoding: list[Interval] = field(default_factory=list)
    prefilling: list[Interval] = field(default_factory=list)

    def rest(self) -> None:
        """Do nothing for a moment, so that there is an idle power."""
        before_s = self.clock()
        self.sleep(REST_S)
        self.resting.append((before_s, self.clock()))

    def profile(self, layer_ms: float) -> PowerProfile | str:
        """The phases' mean powers, or why there are none; `layer_ms` is one layer's time for one decoded token."""
        means_w = []
        for phase, intervals in (("at rest", self.resting), ("decode", self.decoding), ("prefill", self.prefilling)):
            parts = [self.recorder.energy(*interval) for interval in intervals]
            covered_s = sum(part.covered_s for part in parts)
            if covered_s <= 0.0:
                reason = next((part.reason for part in parts if part.reason), "nothing was run")
                return f"{phase}: {reason}"
            means_w.append(sum(part.joules or 0.0 for part in parts) / covered_s)
            source = parts[0].source
        idle_w, decode_w, prefill_w = (max(0.0, mean_w) for mean_w in means_w)
        return PowerProfile(
            idle_w=idle_w,
            decode_w=decode_w,
            prefill_w=prefill_w,
            source=source,
            joules_per_token_layer=decode_w * layer_ms / 1e3,
        )
