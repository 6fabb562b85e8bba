"""Rates of a pipeline that feeds itself: closed forms over the service times of its stages and links.

m micro-batches of mu rows circulate: a micro-batch passes every stage and link in order, returns to the source, and
begins its next token there. Stages and links serve one micro-batch at a time; latencies only delay. EdgeShard
(arXiv 2405.14371) equations 9 and 10, made aware of the ring; `simulator` plays the same pipeline event by event.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineTimes:
    """What one micro-batch's step takes, place by place, in milliseconds. S stages."""

    compute_ms: tuple[float, ...]
    """[S]"""
    transfer_ms: tuple[float, ...] = ()
    """[S - 1], how long each link is busy."""
    latency_ms: tuple[float, ...] = ()
    """[S - 1], what each link adds without being busy."""
    return_ms: float = 0.0
    """The token's way from the last stage to the source."""
    servers: tuple[str, ...] = ()
    """[S], who computes each stage: stages of one server take turns (two devices on one machine). Empty: all differ."""

    def __post_init__(self) -> None:
        stages = len(self.compute_ms)
        if stages < 1 or len(self.transfer_ms) != stages - 1 or len(self.latency_ms) != stages - 1:
            between = f"{len(self.transfer_ms)} transfers and {len(self.latency_ms)} latencies"
            raise ValueError(f"{stages} stages with {between} between them")
        if len(self.servers) not in (0, stages):
            raise ValueError(f"{stages} stages with {len(self.servers)} servers")

    @property
    def round_ms(self) -> float:
        """One token alone in the pipeline, L in the formulas."""
        return sum(self.compute_ms) + sum(self.transfer_ms) + sum(self.latency_ms) + self.return_ms

    @property
    def bottleneck_ms(self) -> float:
        """The busiest stage's, server's or link's time per step."""
        busy: defaultdict[str, float] = defaultdict(float)
        for place, compute_ms in enumerate(self.compute_ms):
            busy[self.servers[place] if self.servers else str(place)] += compute_ms
        return max(*busy.values(), *self.transfer_ms, 0.0)


def no_bubbles_rate(times: PipelineTimes, micro_batches: int, rows: int) -> float:
    """Tokens per second when a micro-batch begins its next step the moment its token is back.

    mu / max(slowest server, L / m): the maximal cycle ratio of the marked graph made of one loop per server and the
    ring with m tokens. Where stages share a server, taking turns first come first served may miss it: a bound then.
    """
    return 1e3 * rows / max(times.bottleneck_ms, times.round_ms / micro_batches)


def bubbles_rate(times: PipelineTimes, micro_batches: int, rows: int) -> float:
    """Tokens per second with a barrier after each round: m mu / (L + (m - 1) bottleneck).

    Where stages share a server this is a guide and no bound: first come first served can be faster or slower.
    """
    return 1e3 * micro_batches * rows / (times.round_ms + (micro_batches - 1) * times.bottleneck_ms)


def sequential_rate(times: PipelineTimes, rows: int) -> float:
    """Tokens per second of one micro-batch alone."""
    return 1e3 * rows / times.round_ms
