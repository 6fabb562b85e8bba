"""What is known of the link behind a route's source: emulated where it is emulated, else as measured, else None. Pure.

A channel is emulated as a function of a token's position, so what is observed of it is the state that the running
sessions' next positions will meet. Of a real link the transport measures round trip and goodput; it loses nothing that
TCP does not mend, so its loss is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from agent.device.telemetry import quantile
from agent.wire.messages import Heartbeat
from planner.channel import Channel
from rl.controller import Observation

EMULATED, MEASURED = "emulated", "measured"


@dataclass(frozen=True, slots=True)
class LinkView:
    """A link as a decision sees it. None: not known, and `missing` says why."""

    source: str
    peer: str
    channel: str = MEASURED
    """Where loss, sigma and m come from: emulated or measured."""
    loss: float | None = None
    sigma: float | None = None
    m: float | None = None
    snr_db: float | None = None
    rtt_ms: float | None = None
    goodput_bytes_per_s: float | None = None
    is_lower_bound: bool = False
    """The device had no more to send: the link may carry more."""
    resent: float | None = None
    """Share of TCP segments that were sent more than once."""
    missing: tuple[tuple[str, str], ...] = ()

    def observation(self, split: int) -> Observation:
        return Observation(split, self.loss, self.sigma, self.m, self.rtt_ms, self.goodput_bytes_per_s)

    def as_json(self) -> dict[str, object]:
        return {
            "from": self.source,
            "to": self.peer,
            "emulated": self.channel == EMULATED,
            "loss": self.loss,
            "sigma": self.sigma,
            "m": self.m,
            "snr_db": self.snr_db,
            "rtt_ms": None if self.rtt_ms is None else round(self.rtt_ms, 3),
            "goodput_bytes_per_s": self.goodput_bytes_per_s,
            "goodput_is_lower_bound": self.is_lower_bound,
            "resent": self.resent,
            "missing": dict(self.missing),
        }


def view_link(
    source: str, peer: str, channel: Channel | None, positions: Sequence[int], heartbeat: Heartbeat | None
) -> LinkView:
    """The link from a source to the next device at these positions of its sessions; none: at the first."""
    missing: dict[str, str] = {}
    rtt_ms = goodput = resent = None
    is_lower_bound = False
    if heartbeat is None:
        missing = dict.fromkeys(("rtt_ms", "goodput_bytes_per_s"), f"no heartbeat of {source} yet")
    else:
        found = next((link for link in heartbeat.telemetry.links if link.peer == peer), None)
        if found is not None:
            rtt_ms, goodput, resent = map(_possible, (found.rtt_ms, found.goodput_bytes_per_s, found.resent))
            is_lower_bound = found.is_lower_bound
            missing = dict(found.missing)
        if rtt_ms is None and "hop_rtt_seconds" in heartbeat.telemetry.histograms:
            median_s = quantile(heartbeat.telemetry.histograms["hop_rtt_seconds"], 0.5)
            if not math.isnan(median_s):
                rtt_ms = 1e3 * median_s
                missing.pop("rtt_ms", None)
    if channel is None:
        missing["loss"] = "no channel is emulated, and TCP mends what is lost: `resent` is its share"
        return LinkView(
            source,
            peer,
            rtt_ms=rtt_ms,
            goodput_bytes_per_s=goodput,
            is_lower_bound=is_lower_bound,
            resent=resent,
            missing=tuple(missing.items()),
        )
    states = [channel.state_at(position) for position in positions or (0,)]
    shapes = [state.m for state in states if state.m is not None]
    ratios = [state.snr_db for state in states if state.snr_db is not None]
    if not shapes:
        missing["m"] = "the channel's states were not drawn from a fading with a shape"
    if ratios:
        missing["sigma"] = "the channel's noise is given by its ratio to the signal"
    return LinkView(
        source,
        peer,
        EMULATED,
        loss=fmean(state.loss for state in states),
        sigma=None if ratios else fmean(state.sigma for state in states),
        m=fmean(shapes) if shapes else None,
        snr_db=fmean(ratios) if ratios else None,
        rtt_ms=rtt_ms,
        goodput_bytes_per_s=goodput,
        is_lower_bound=is_lower_bound,
        resent=resent,
        missing=tuple(missing.items()),
    )


def _possible(value: float | None) -> float | None:
    """What a device says it measured, unless no measurement says that."""
    return value if value is not None and math.isfinite(value) and value >= 0.0 else None
