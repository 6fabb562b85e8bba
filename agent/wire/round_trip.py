"""Smoothed round-trip time of one hop, and a token's wire time split over the hops. Sans-IO, clocks are arguments."""

from __future__ import annotations

from collections.abc import Sequence

SMOOTHING = 1 / 8
VARIANCE_SMOOTHING = 1 / 4
"""Alpha and beta of RFC 6298, section 2."""

PING_INTERVAL_S = 1.0
"""Often enough to follow a radio link, and rare enough to cost nothing beside tokens."""


class RoundTrip:
    """SRTT and RTTVAR of RFC 6298 over PING and PONG; one ping is outstanding at a time."""

    def __init__(self) -> None:
        self.smoothed_s: float | None = None
        """None before the first answer."""
        self.latest_s = 0.0
        """Of the answer that came last."""
        self.variance_s = 0.0
        self._outstanding_ns: int | None = None

    def sent(self, now_ns: int) -> None:
        """A PING with this stamp left; an unanswered earlier one no longer counts."""
        self._outstanding_ns = now_ns

    def received(self, echoed_ns: int, now_ns: int) -> bool:
        """A PONG came back with the ping's stamp. False, and no change, when that ping is not outstanding: the stamp
        is a peer's claim and may name any time."""
        if self._outstanding_ns is None or echoed_ns != self._outstanding_ns:
            return False
        self._outstanding_ns = None
        sample_s = (now_ns - echoed_ns) / 1e9
        self.latest_s = sample_s
        if self.smoothed_s is None:
            self.smoothed_s = sample_s
            self.variance_s = sample_s / 2
        else:
            self.variance_s += VARIANCE_SMOOTHING * (abs(self.smoothed_s - sample_s) - self.variance_s)
            self.smoothed_s += SMOOTHING * (sample_s - self.smoothed_s)
        return True

    def reset(self) -> None:
        """The connection was lost: a ping on its way will not be answered, what was measured stays."""
        self._outstanding_ns = None


def split_wire_s(wire_s: float, round_trips_s: Sequence[float]) -> list[float]:
    """A step's wire time (send to answer less the time held downstream) over its hops, in proportion to their RTT.

    Evenly when no round trip is known. The parts add up to `wire_s`; a negative one (clock granularity) counts as 0.
    """
    wire_s = max(wire_s, 0.0)
    total_s = sum(round_trips_s)
    if total_s <= 0.0:
        return [wire_s / len(round_trips_s) for _ in round_trips_s]
    return [wire_s * round_trip_s / total_s for round_trip_s in round_trips_s]
