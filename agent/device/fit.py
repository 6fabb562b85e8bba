"""From timed rounds to the numbers of a profile: one layer, and what a stage costs beside its layers.

A run of a layer range takes `call + layers * layer`. The call is told from two ranges of different length that were
timed in the same rounds, once for the device; a layer is then whatever remains of the time of both ranges, so a stage
as long as both together is predicted as it was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from agent.device.rounds import RoundTimes
from agent.device.timing import timing
from planner.profile import Timing


def call_s(rounds: Sequence[RoundTimes], lengths: Sequence[int]) -> float:
    """Seconds of a call beside its layers: the median over all rounds, at least 0.

    0 as well where only one range was timed, or two of one length: nothing then tells it from the layers.
    """
    if len(lengths) != 2 or lengths[0] == lengths[1]:
        return 0.0
    short, long = lengths
    per_layer = 1 / short - 1 / long
    found = [(a / short - b / long) / per_layer for times in rounds for a, b in zip(*times.ranges, strict=True)]
    # More than the whole of the shorter run it cannot be.
    longest = min((min(times.ranges[0]) for times in rounds if times.ranges[0]), default=0.0)
    return min(max(0.0, statistics.median(found)), longest) if found else 0.0


def layer_timing(times: RoundTimes, lengths: Sequence[int], call: float) -> Timing:
    """One layer in these rounds, when each range costs `call` seconds beside its layers."""
    layers = sum(lengths)
    calls = call * len(lengths)
    # A round may be quicker than the median call by chance.
    return timing([max(sum(parts) - calls, 0.0) / layers for parts in zip(*times.ranges, strict=True)])


def averaged(timings: Sequence[Timing]) -> Timing:
    """One timing for layers that were loaded one after another. Raises ValueError for none."""
    if not timings:
        raise ValueError("no timings to average")
    p95 = [one.p95_ms for one in timings if one.p95_ms is not None]
    return Timing(
        ms=statistics.fmean(one.ms for one in timings),
        p95_ms=max(p95, default=None),
        samples=sum(one.samples for one in timings),
        outliers=sum(one.outliers for one in timings),
    )
