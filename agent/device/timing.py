"""How long something takes: warm-up, as many runs as the time allows, median, 95th percentile, outliers.

The clock is an argument, and only durations are looked at.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.profile import Timing

Clock = Callable[[], float]
"""Seconds on a clock that never goes back."""

SCALED = 1.4826
"""The median absolute deviation of a normal distribution times this is its standard deviation."""
OUTLYING = 3.0
SHORTEST_MS = 1e-6
"""What a timer that saw no time at all reports: a duration of 0 is no time."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is spent on one figure."""

    seconds: float
    """Runs go on until this has passed, warm-up included."""
    warm_up: int = 2
    """The first runs, which do not count; only one when that takes all the time."""
    fewest: int = 3
    """Runs that are made and count even when the time is up."""
    most: int = 400


def timing(samples_s: Sequence[float]) -> Timing:
    """Median, 95th percentile (nearest rank) and how many samples lie more than three scaled median absolute
    deviations from the median. Raises ValueError without samples."""
    if not samples_s:
        raise ValueError("no samples to take a median of")
    ordered = sorted(samples_s)
    median = statistics.median(ordered)
    deviation = SCALED * statistics.median(abs(sample - median) for sample in ordered)
    p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]
    return Timing(
        ms=max(1e3 * median, SHORTEST_MS),
        p95_ms=max(1e3 * p95, SHORTEST_MS),
        samples=len(ordered),
        outliers=sum(abs(sample - median) > OUTLYING * deviation for sample in ordered),
    )


def scaled(measured: Timing, factor: float) -> Timing:
    """The same measurement in another unit of work, for example of one layer where a stage was timed."""
    return Timing(
        ms=max(measured.ms * factor, SHORTEST_MS),
        p95_ms=None if measured.p95_ms is None else max(measured.p95_ms * factor, SHORTEST_MS),
        samples=measured.samples,
        outliers=measured.outliers,
    )


def repeat(run: Callable[[], None], effort: Effort, clock: Clock) -> int:
    """Run until the effort is spent; returns how many runs count, which are the last ones. `run` keeps its own
    samples."""
    started_s = clock()
    warmed_up = runs = 0
    while warmed_up < effort.warm_up and (warmed_up == 0 or clock() - started_s < effort.seconds):
        run()
        warmed_up += 1
    while runs < effort.most and (runs < effort.fewest or clock() - started_s < effort.seconds):
        run()
        runs += 1
    return runs
