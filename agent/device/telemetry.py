"""What a worker measures: histograms with fixed buckets and counters, taken out as one snapshot.

Recording is cheap (under a microsecond) and belongs to one thread; reading may happen from another. The clock is the
caller's: only durations come in. Snapshots are totals since the worker started; `difference` gives a period.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, get_args

from agent.errors import RefusalReason
from agent.wire.link_report import LinkObservation, pinged
from agent.wire.messages import HistogramSnapshot, Telemetry
from agent.wire.round_trip import RoundTrip

HistogramName = Literal[
    "decode_compute_seconds",
    "decode_held_seconds",
    "decode_step_seconds",
    "decode_wait_seconds",
    "decode_wire_seconds",
    "hop_rtt_seconds",
    "prefill_compute_seconds",
    "prefill_wait_seconds",
]
"""compute: this stage's layers (and at the last stage head and sampling) in one run. wait: a frame between its arrival
and its run. held: a frame's arrival to the departure of what it caused, behind the source only. wire: at the source,
send to answer less the time held downstream. step: at the source, one token to the next. hop_rtt: ping to pong."""

CounterName = Literal[
    "bytes_sent",
    "decode_bytes_sent",
    "decode_frames_sent",
    "duplicates_dropped",
    "frames_received",
    "frames_resent",
    "frames_sent",
    "handshakes_refused",
    "residual_saturated",
    "tokens_sampled",
]
"""residual_saturated counts hidden-state elements that did not fit the boundary type."""

REFUSED_PREFIX = "frames_refused:"

_PER_DECADE = 8
BUCKETS_S: tuple[float, ...] = tuple(10 ** (power / _PER_DECADE - 5) for power in range(7 * _PER_DECADE + 1))
"""Upper bounds of the buckets, log-spaced from 10 µs to 100 s, each 1.33 times the one before; a value on a bound
belongs to the bucket it closes, and one last bucket holds what is longer."""


class Histogram:
    """Counts per bucket of BUCKETS_S and the sum of what was observed, in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum += seconds

    def snapshot(self) -> HistogramSnapshot:
        return HistogramSnapshot(counts=tuple(self.counts), sum=self.sum)


class TelemetryRecorder:
    """The histograms and counters of one worker."""

    def __init__(self) -> None:
        self._histograms = {name: Histogram() for name in get_args(HistogramName)}
        self._counters: dict[str, int] = dict.fromkeys(get_args(CounterName), 0)
        self._round_trips: dict[str, RoundTrip] = {}
        """Of peers that answered a ping, by name."""
        self._links: tuple[LinkObservation, ...] = ()

    def observe(self, name: HistogramName, seconds: float) -> None:
        """Record a duration."""
        self._histograms[name].observe(seconds)

    def add(self, name: CounterName, amount: int = 1) -> None:
        """Count `amount` more."""
        self._counters[name] += amount

    def refused(self, reason: RefusalReason) -> None:
        """Count a refused data frame under its reason."""
        name = REFUSED_PREFIX + reason.value
        self._counters[name] = self._counters.get(name, 0) + 1

    def round_trip(self, peer: str, hop: RoundTrip) -> None:
        """A ping to this peer was answered."""
        self.observe("hop_rtt_seconds", hop.latest_s)
        self._round_trips[peer] = hop

    def see_links(self, links: Sequence[LinkObservation]) -> None:
        """The connections there are now, in place of those seen before; pings say what the kernel cannot."""
        present = {link.peer for link in links}
        self._round_trips = {peer: hop for peer, hop in self._round_trips.items() if peer in present}
        self._links = tuple(self._with_pings(link) for link in links)

    def _with_pings(self, link: LinkObservation) -> LinkObservation:
        hop = self._round_trips.get(link.peer)
        if hop is None or hop.smoothed_s is None:
            return link
        return pinged(link, hop.smoothed_s, hop.variance_s)

    def snapshot(self) -> Telemetry:
        """Totals since the start; histograms that saw nothing and counters at zero are left out."""
        return Telemetry(
            histograms={name: h.snapshot() for name, h in self._histograms.items() if any(h.counts)},
            counters={name: count for name, count in tuple(self._counters.items()) if count},
            links=self._links,
        )


def count(histogram: HistogramSnapshot) -> int:
    """How many durations were observed."""
    return sum(histogram.counts)


def mean(histogram: HistogramSnapshot) -> float:
    """Exact mean in seconds, nan when nothing was observed."""
    total = count(histogram)
    return histogram.sum / total if total else math.nan


def quantile(histogram: HistogramSnapshot, fraction: float) -> float:
    """Estimate of a quantile in seconds, off by at most the width of its bucket; nan when nothing was observed.

    Interpolates geometrically inside the bucket; what lies past the last bound is reported as that bound.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction} is outside 0 to 1")
    rank = fraction * count(histogram)
    below = 0
    for index, in_bucket in enumerate(histogram.counts):
        if in_bucket and below + in_bucket >= rank:
            upper = BUCKETS_S[min(index, len(BUCKETS_S) - 1)]
            lower = BUCKETS_S[index - 1] if index else BUCKETS_S[0] * BUCKETS_S[0] / BUCKETS_S[1]
            return float(min(lower, upper) * (upper / min(lower, upper)) ** ((rank - below) / in_bucket))
        below += in_bucket
    return math.nan


def difference(later: Telemetry, earlier: Telemetry) -> Telemetry:
    """What happened between two snapshots of one worker; after a restart (a total shrank) it is `later` itself."""
    shrunk = any(later.counters.get(name, 0) < total for name, total in earlier.counters.items())
    shrunk |= any(
        name not in later.histograms or count(later.histograms[name]) < count(histogram)
        for name, histogram in earlier.histograms.items()
    )
    if shrunk:
        return later
    empty = HistogramSnapshot(counts=(0,) * (len(BUCKETS_S) + 1), sum=0.0)
    return Telemetry(
        histograms={
            name: HistogramSnapshot(
                counts=tuple(
                    a - b for a, b in zip(new.counts, earlier.histograms.get(name, empty).counts, strict=True)
                ),
                sum=new.sum - earlier.histograms.get(name, empty).sum,
            )
            for name, new in later.histograms.items()
        },
        counters={name: total - earlier.counters.get(name, 0) for name, total in later.counters.items()},
        links=later.links,
    )
