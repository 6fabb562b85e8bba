"""When a frame has left an emulated link and when it has arrived. Sans-IO: clock and randomness are arguments.

A link is a token bucket (rate and depth), a latency and its jitter, in that order. Frames leave in the order in which
they were handed over, one at a time, and never overtake each other on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from agent.errors import ConfigError
from agent.wire.addresses import LinkShape

MAX_DELAY_MS = 60_000
"""Of latency and jitter: beyond what connects two devices of a route, whose answers are late after 10 s."""
MAX_BYTES_PER_S = 10**12
MAX_BURST_BYTES = 1 << 40


class LinkClock:
    """The times of one direction of one link.

    The bucket is fluid: the last byte of a frame leaves when as many tokens have come as the frame has bytes, also one
    longer than the bucket is deep. So any t seconds carry at most burst + rate·t bytes, and a backlog leaves at
    exactly the rate (the generic cell rate algorithm, ITU-T I.371 annex A, with bytes for cells).
    """

    def __init__(self, shape: LinkShape, normal: Callable[[], float]) -> None:
        """`normal` draws from the standard normal distribution. Raises ConfigError for a shape that is none."""
        check_shape(shape)
        self.free_s = -math.inf
        """When the last frame handed over has left: the next one's bytes follow."""
        self._shape = shape
        self._normal = normal
        self._empty_s = -math.inf
        """When the bucket was or will be empty."""
        self._arrived_s = -math.inf

    def send(self, now_s: float, size_bytes: int) -> float:
        """When a frame handed over at `now_s` has arrived, in seconds of the same clock. `now_s` never falls."""
        shape = self._shape
        self.free_s = now_s
        if shape.bytes_per_s > 0:
            full_s = shape.burst_bytes / shape.bytes_per_s
            self._empty_s = max(self._empty_s, now_s - full_s) + size_bytes / shape.bytes_per_s
            self.free_s = max(now_s, self._empty_s)
        delay_ms = shape.latency_ms
        if shape.jitter_ms > 0:
            delay_ms = max(0.0, delay_ms + shape.jitter_ms * self._normal())
        self._arrived_s = max(self._arrived_s, self.free_s + delay_ms / 1e3)
        return self._arrived_s


def check_shape(shape: LinkShape) -> None:
    """Raises ConfigError for a number that is negative, not finite or beyond its limit, naming link and field."""
    for name, value, most in (
        ("bytes_per_s", shape.bytes_per_s, MAX_BYTES_PER_S),
        ("burst_bytes", shape.burst_bytes, MAX_BURST_BYTES),
        ("latency_ms", shape.latency_ms, MAX_DELAY_MS),
        ("jitter_ms", shape.jitter_ms, MAX_DELAY_MS),
    ):
        if not 0 <= value <= most:  # which a NaN is not either
            raise ConfigError(f"emulated link to {shape.peer}: {name} is {value}, must be from 0 to {most:g}")
