"""Energy of an interval: a thread that samples one sensor, and the integral over what it saw.

`integrate` is pure. Readings are instantaneous powers joined by straight lines, or an energy counter whose differences
are taken. A stretch without readings longer than three periods is left out and counted, not guessed.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from agent.device.sensors.sample import POWER, Sample, Sensor

GAP_PERIODS = 3
"""A distance between readings of more than this many periods is a gap."""

KEPT_READINGS = 200_000
"""Almost three hours at 20 readings a second; beyond it the older half is forgotten."""


class Reading(NamedTuple):
    """A moment on CLOCK_MONOTONIC with a power, a counter, or both."""

    taken_s: float
    power_w: float | None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """The energy of an interval, as far as readings cover it."""

    joules: float | None
    """Of the covered part of the interval; None when nothing of it is covered."""
    mean_w: float | None
    """`joules / covered_s`."""
    samples: int
    """Readings with a power or a counter within the interval."""
    gaps: int
    """Stretches left out because they are longer than three periods."""
    reason: str = ""
    """Why `joules` is None, or what is left out of it; empty when at most three periods at the ends are."""
    covered_s: float = 0.0
    source: str = ""
    covers: str = ""
    """What the energy is of, as in Sample."""


def integrate(readings: Sequence[Reading], from_s: float, to_s: float, period_s: float) -> Energy:
    """Energy between two moments from readings of ascending, distinct times; `period_s` is their intended distance.

    Ends between two readings are interpolated, in the power or in the counter. A counter is exact over a gap that lies
    wholly inside; one that runs backwards was reset, and that stretch is a gap.
    """
    usable = [reading for reading in readings if reading.power_w is not None or reading.energy_j is not None]
    longest_s = GAP_PERIODS * period_s
    joules = covered_s = 0.0
    gaps = 0
    for first, second in pairwise(usable):
        begin, end = max(first.taken_s, from_s), min(second.taken_s, to_s)
        if begin >= end:
            continue
        inside = (begin, end) == (first.taken_s, second.taken_s)
        part = _between(first, second, begin, end, is_gap=second.taken_s - first.taken_s > longest_s, inside=inside)
        if part is None:
            gaps += 1
        else:
            joules += part
            covered_s += end - begin
    if usable:  # the ends of the interval that lie outside all readings
        gaps += usable[0].taken_s - from_s > longest_s
        gaps += to_s - usable[-1].taken_s > longest_s
    samples = sum(from_s <= reading.taken_s <= to_s for reading in usable)
    if covered_s <= 0.0:
        return Energy(joules=None, mean_w=None, samples=samples, gaps=gaps, reason="no two readings cover the interval")
    missing_s = to_s - from_s - covered_s
    reason = f"{missing_s:.3f} s of {to_s - from_s:.3f} s are without readings" if missing_s > longest_s else ""
    return Energy(
        joules=joules, mean_w=joules / covered_s, samples=samples, gaps=gaps, reason=reason, covered_s=covered_s
    )


def _between(first: Reading, second: Reading, begin: float, end: float, *, is_gap: bool, inside: bool) -> float | None:
    """Joules from `begin` to `end`, both between the two readings; None where that may not be told."""
    span_s = second.taken_s - first.taken_s
    if first.energy_j is not None and second.energy_j is not None:
        if second.energy_j < first.energy_j or (is_gap and not inside):
            return None
        return (second.energy_j - first.energy_j) * (end - begin) / span_s
    if is_gap or first.power_w is None or second.power_w is None:
        return None
    slope = (second.power_w - first.power_w) / span_s
    middle_w = first.power_w + slope * ((begin + end) / 2 - first.taken_s)
    return middle_w * (end - begin)


class PowerRecorder:
    """Samples one sensor in a thread of its own and integrates what it saw. Does not close the sensor."""

    def __init__(self, sensor: Sensor, clock: Callable[[], float] = time.monotonic, period_s: float = 0.05) -> None:
        self._sensor = sensor
        self._clock = clock
        self._period_s = period_s
        self._readings: list[Reading] = []
        self._latest: Sample | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerRecorder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def latest(self) -> Sample | None:
        """The newest sample: clocks and temperatures beside the power."""
        with self._lock:
            return self._latest

    def start(self) -> None:
        """Begins sampling; a recorder that runs goes on."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="power", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread and takes a last sample; the readings stay."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self.take()

    def take(self) -> None:
        """One sample now; its moment is the middle of the read. Values the source repeats are kept once."""
        with self._lock:
            before_s = self._clock()
            sample = self._sensor.sample(before_s)
            after_s = self._clock()
            if sample.taken_s >= before_s:
                sample = replace(sample, taken_s=(before_s + after_s) / 2)
            self._latest = sample
            if sample.power_w is None and sample.energy_j is None:
                return
            if not self._readings or sample.taken_s > self._readings[-1].taken_s:
                self._readings.append(Reading(sample.taken_s, sample.power_w, sample.energy_j))
                if len(self._readings) > KEPT_READINGS:
                    del self._readings[: KEPT_READINGS // 2]

    def energy(self, from_s: float, to_s: float) -> Energy:
        """Energy between two moments of the recorder's clock; None with a reason where the sensor has no power."""
        with self._lock:
            ends_early = self._thread is not None and (not self._readings or self._readings[-1].taken_s < to_s)
        if ends_early:
            self.take()
        with self._lock:
            latest = self._latest
            first = max(0, bisect_right(self._readings, from_s, key=_taken) - 1)
            readings = self._readings[first : bisect_left(self._readings, to_s, key=_taken) + 1]
        if latest is None:
            return Energy(joules=None, mean_w=None, samples=0, gaps=0, reason="the recorder was not started")
        energy = integrate(readings, from_s, to_s, max(self._period_s, latest.period_s))
        if energy.joules is None and POWER in latest.missing:
            energy = replace(energy, reason=latest.missing[POWER])
        return replace(energy, source=latest.source, covers=latest.covers)

    def _run(self) -> None:
        due_s = self._clock()
        while not self._stop.is_set():
            self.take()
            due_s = max(due_s + self._period_s, self._clock() - self._period_s)  # after a stall no burst of reads
            self._stop.wait(max(0.0, due_s - self._clock()))


def _taken(reading: Reading) -> float:
    return reading.taken_s
