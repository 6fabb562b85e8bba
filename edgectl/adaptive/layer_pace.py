"""How long a device takes for so many layers of a decode step, by what its heartbeats say while it runs. Pure.

Telemetry is totals since the worker started, so a step's time is what was added between two heartbeats, where the
device ran the same layers at both. Of one number of layers the time per layer is taken; of two or more a line is
fitted, since what a step costs beside its layers (frames, head, sampling) does not grow with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.wire.messages import Telemetry

SMOOTHING = 0.3
"""Weight of a heartbeat's worth of steps: the last five count for most of it."""


@dataclass(slots=True)
class LayerPace:
    """One device."""

    _ms: dict[int, float] = field(default_factory=dict)
    """Per decode step, by how many layers it ran."""
    _count: int = 0
    _sum_s: float = 0.0
    _layers: int | None = None
    """At the last heartbeat; None where its micro-batches ran different ones."""

    def heard(self, telemetry: Telemetry, layers: int | None) -> None:
        """A heartbeat came while the device ran so many layers; None: different ones in different micro-batches."""
        totals = telemetry.histograms.get("decode_compute_seconds")
        count, sum_s = (0, 0.0) if totals is None else (sum(totals.counts), totals.sum)
        steps, spent_s = count - self._count, sum_s - self._sum_s
        if steps > 0 and spent_s > 0 and layers is not None and layers == self._layers:
            observed = 1e3 * spent_s / steps
            before = self._ms.get(layers)
            self._ms[layers] = observed if before is None else before + SMOOTHING * (observed - before)
        self._count, self._sum_s, self._layers = count, sum_s, layers

    def step_ms(self, layers: int) -> float | None:
        """A step of so many layers; None before any was observed. Never less than nothing, never less for more."""
        if not self._ms:
            return None
        if len(self._ms) == 1:
            ((known, ms),) = self._ms.items()
            return ms * layers / known if known else ms
        mean_layers = sum(self._ms) / len(self._ms)
        mean_ms = sum(self._ms.values()) / len(self._ms)
        spread = sum((known - mean_layers) ** 2 for known in self._ms)
        slope = sum((known - mean_layers) * (ms - mean_ms) for known, ms in self._ms.items()) / spread
        return max(0.0, mean_ms + max(0.0, slope) * (layers - mean_layers))
