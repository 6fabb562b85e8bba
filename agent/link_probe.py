"""Times one direction of a link with frames of serving: a probe goes there, a pong comes back. Sans-IO.

It has a connection of its own to the peer's data endpoint, so a route that uses the same link neither helps nor
hinders it, and the worker's loop goes on meanwhile. Time and events come in, effects go out.

Empty pings go first, one right after the other, then others after pauses; probes that carry hidden states of every
wanted size follow in turns, after pauses too, so that a link that changes changes them all alike. A line through the
medians, each weighted by its inverse, gives the round trip without payload and the time per byte. In serving a frame
finds its receiver asleep, for it has waited for the other stages; the pong finds the prober awake. So what one
direction takes is the round trip after a pause less half of one without. And a stage that sends has just streamed its
weights: before a pause the prober reads as much memory as pushes everything else out of its caches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from agent.compute import kernels
from agent.effects import Connect, Disconnect, Effect, Notify, Send
from agent.errors import ConfigError, FrameRefused
from agent.wire import codec
from agent.wire.codec import CODEC_IDS, MAX_HIDDEN_SIZE, MAX_TOKENS_PER_ROW, Buffer, Frame, FrameKind, payload_bytes
from agent.wire.events import Connected, Disconnected, Event, Refused, Replied
from agent.wire.measure_messages import (
    MAX_MEASURE_S,
    MAX_MEASURED_BYTES,
    MAX_MEASURED_POINTS,
    LinkMeasured,
    MeasureLink,
    MeasureProgress,
)
from agent.wire.messages import Failed
from planner.profile import LinkProfile

CONNECT_S = 10.0
"""A peer that cannot be reached for this long is unreachable; a refused key is tried again until then."""
PING_SHARE = 0.25
"""Of the time, for round trips of empty frames."""
MOST_PINGS = 100
"""Without pauses, and as many with."""
MOST_TURNS = 100
WARM_UP = 3
"""First round trips of every size that do not count: windows and buffers grow with them."""
PAUSE_S = 0.002
"""Before frames that are to find their receiver asleep. Between two processes of one machine, a hop looks half as long
without (docs/log.md)."""
STREAMED_BYTES = 64 << 20
"""Several times the last-level cache of most devices; read in a few milliseconds."""
PROGRESS_S = 0.5
LONGEST_FRAME_S = 2.0
"""A frame expected to take longer is not sent: heartbeats wait behind it, and DEVICE_SUSPECT_S is not much longer."""
SILENCE_S = 10.0
"""An answer that has not come after this long will not come."""
FASTEST = 1e11
"""Bytes per second that no probe can tell from more."""


@dataclass(slots=True)
class Size:
    """One frame size and its round trips so far."""

    frame: Frame
    samples_s: list[float] = field(default_factory=list)

    @property
    def payload_bytes(self) -> int:
        return len(self.frame.payload)

    @property
    def round_trips_s(self) -> list[float]:
        """Those that count: on a slow link the last of the warm-up is better than none."""
        return self.samples_s[WARM_UP:] or self.samples_s[-1:]

    @property
    def median_s(self) -> float:
        return statistics.median(self.round_trips_s)


class LinkProbe:
    """One measurement, from the request to its answer."""

    def __init__(
        self, request: MeasureLink, device: str, now: float, stream_memory: Callable[[], object] | None = None
    ) -> None:
        """Raises ConfigError for a request that no frame can carry out. `stream_memory` empties the caches."""
        _check(request, device)
        self._stream_memory = stream_memory or np.ones(STREAMED_BYTES // 8).sum
        self.connection = f"probe of {request.peer}"
        """What the worker's sockets call the peer here."""
        self.is_done = False
        self._request = request
        self._device = device
        self._quick = Size(Frame(FrameKind.PING, 0, 0, 0))
        """Pings without pauses."""
        self._pings = Size(Frame(FrameKind.PING, 0, 0, 0))
        self._sizes = [Size(_probe(tokens, hidden, request)) for tokens, hidden in request.sizes]
        self._turn = 0
        self._outstanding: Size | None = None
        self._sent_ns = 0
        self._sent_s = now
        self._started_s = now
        self._reported_s = now
        self.due_s: float | None = None
        """When the next frame is to be sent; None while an answer is awaited."""
        self._ends_s: float | None = None
        """When the time is up, from the moment of the first connection on."""
        self._refused = False

    def start(self) -> list[Effect]:
        return [Connect(self.connection, self._request.endpoint, self._request.key)]

    def owns(self, event: Event) -> bool:
        """Whether an event of the sockets concerns the probe's connection."""
        return isinstance(event, (Connected, Disconnected, Refused, Replied)) and event.peer == self.connection

    def on_event(self, event: Event, now: float) -> list[Effect]:
        """An event that the probe owns."""
        match event:
            case _ if self.is_done:
                return []
            case Connected():
                return self._on_connected(now)
            case Replied(_, parts):
                return self._on_parts(parts, now)
            case Refused():
                # The peer does not know this device's key, yet.
                self._refused = True
        return []

    def _on_connected(self, now: float) -> list[Effect]:
        """What was under way on an earlier connection is lost and goes again."""
        if self._ends_s is None:
            self._ends_s = now + self._request.seconds
        self._outstanding = None
        self.due_s = now
        return []

    def _on_parts(self, parts: Sequence[Buffer], now: float) -> list[Effect]:
        """Something came back from the peer; only the pong of what is outstanding means anything."""
        size = self._outstanding
        try:
            frame = codec.decode(parts, kernels.crc32c)
        except FrameRefused:
            return []
        if size is None or frame.kind is not FrameKind.PONG or frame.sent_ns != self._sent_ns:
            return []
        size.samples_s.append(now - self._sent_s)
        self._outstanding = None
        self.due_s = now
        if size is not self._quick:
            self._stream_memory()
            self.due_s = now + PAUSE_S
        return []

    def tick(self, now: float) -> list[Effect]:
        """To be called when `due_s` has come, and a few times a second, until `is_done`."""
        if self.is_done:
            return []
        # Whatever the peer does: one that only ever connects again would keep the probe going without an end.
        if self._ends_s is not None and now > self._ends_s + SILENCE_S:
            return self._finish()
        if self.due_s is not None and now >= self.due_s:
            return self._next(now)
        elapsed_s = now - self._started_s
        if self._ends_s is None and elapsed_s > CONNECT_S:
            cause = "refuses this device's key" if self._refused else "cannot be reached"
            return self._fail("peer_unreachable", f"{self._request.peer} at {self._request.endpoint} {cause}")
        if now - self._reported_s < PROGRESS_S:
            return []
        self._reported_s = now
        total = math.ceil(self._request.seconds)
        done = min(total, int(elapsed_s))
        return [Notify(MeasureProgress(f"link to {self._request.peer}", done, total))]

    def _next(self, now: float) -> list[Effect]:
        assert self._ends_s is not None
        size = self._choose(self._ends_s - now)
        if size is None:
            return self._finish()
        self._outstanding = size
        self.due_s = None
        # Two frames of one nanosecond would have the same stamp.
        self._sent_ns = max(self._sent_ns + 1, round(now * 1e9))
        self._sent_s = now
        frame = size.frame
        return [
            Send(
                self.connection,
                Frame(
                    frame.kind,
                    0,
                    0,
                    0,
                    codec=frame.codec,
                    shape=frame.shape,
                    sent_ns=self._sent_ns,
                    payload=frame.payload,
                ),
            )
        ]

    def _choose(self, left_s: float) -> Size | None:
        """The size to send now, None when the measurement is at its end."""
        for number, pings in enumerate((self._quick, self._pings), start=1):
            until_s = (1 - number * PING_SHARE / 2) * self._request.seconds
            if not pings.samples_s or (len(pings.samples_s) < MOST_PINGS and left_s > until_s):
                return pings
        while self._turn < MOST_TURNS * len(self._sizes):
            size = self._sizes[self._turn % len(self._sizes)]
            self._turn += 1
            # The first size goes once at least: without any, nothing is known of the bandwidth.
            if self._turn == 1 or self._expected_s(size) < min(left_s, LONGEST_FRAME_S):
                return size
        return None

    def _expected_s(self, size: Size) -> float:
        """How long a round trip of this size will take, by the pings and the largest size that was timed."""
        timed = [other for other in self._sizes if other.samples_s]
        longest = max(timed, key=lambda other: other.payload_bytes, default=self._pings)
        start_s = min(self._pings.median_s, longest.median_s)
        share = size.payload_bytes / longest.payload_bytes if longest.payload_bytes else 1.0
        return start_s + (longest.median_s - start_s) * share

    def _finish(self) -> list[Effect]:
        # Pings alone say nothing of the bandwidth.
        for what, sizes in (("ping", [self._quick]), ("frame with hidden states", self._sizes)):
            if not any(size.samples_s for size in sizes):
                return self._fail("no_answer", f"{self._request.peer} answered no {what} within {SILENCE_S:g} s")
        quick_s = self._quick.median_s
        pings_s = self._pings.round_trips_s or self._quick.round_trips_s
        link = link_profile(self._device, self._request.peer, quick_s, pings_s, self._points())
        self.is_done = True
        return [Disconnect(self.connection), Notify(LinkMeasured(self._request.request, link))]

    def _points(self) -> list[tuple[int, float]]:
        return [(size.payload_bytes, size.median_s) for size in self._sizes if size.samples_s]

    def _fail(self, code: str, problem: str) -> list[Effect]:
        self.is_done = True
        return [Disconnect(self.connection), Notify(Failed("measure-link", code, f"{self._device}: {problem}"))]


def link_profile(
    source: str, destination: str, quick_s: float, pings_s: Sequence[float], points: Sequence[tuple[int, float]]
) -> LinkProfile:
    """A link from the round trip of an empty frame without a pause, those after pauses, one at least, and (payload
    bytes, median round trip after a pause)."""
    empty_s, per_byte_s = fit_line([(0, statistics.median(pings_s)), *points])
    ordered = sorted(pings_s)
    jitters_s = [abs(after - before) for before, after in pairwise(pings_s)]
    return LinkProfile(
        source=source,
        destination=destination,
        # On a link that got quicker meanwhile, half the way is the least that one direction can take.
        latency_ms=1e3 * max(empty_s - quick_s / 2, empty_s / 2),
        bandwidth_bytes_per_s=1 / max(per_byte_s, 1 / FASTEST),
        rtt_p50_ms=1e3 * statistics.median(ordered),
        rtt_p95_ms=1e3 * ordered[max(0, -(-95 * len(ordered) // 100) - 1)],
        jitter_ms=1e3 * statistics.fmean(jitters_s) if jitters_s else None,
    )


def fit_line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(seconds at 0 bytes, seconds per byte), both at least 0, with the least squared relative error over the points.

    The quotient of error and time is what counts, so that small frames are told as well as large ones.
    """
    weights = [1 / max(seconds, 1e-9) for _, seconds in points]
    ones, sizes = (
        np.array(weights),
        np.array([weight * size for weight, (size, _) in zip(weights, points, strict=True)]),
    )
    target = np.array([weight * seconds for weight, (_, seconds) in zip(weights, points, strict=True)])
    determinant = (ones @ ones) * (sizes @ sizes) - (ones @ sizes) ** 2
    only_start = float(ones @ target / (ones @ ones)), 0.0
    if determinant <= 1e-12 * (ones @ ones) * (sizes @ sizes):
        return only_start
    start = float(((sizes @ sizes) * (ones @ target) - (ones @ sizes) * (sizes @ target)) / determinant)
    slope = float(((ones @ ones) * (sizes @ target) - (ones @ sizes) * (ones @ target)) / determinant)
    if slope < 0:
        return only_start
    if start < 0:
        return 0.0, float(sizes @ target / (sizes @ sizes))
    return start, slope


def _probe(tokens: int, hidden: int, request: MeasureLink) -> Frame:
    """A frame with hidden states of one row, as many bytes as `tokens` rows of one token have."""
    shape = (1, tokens, hidden)
    states = np.random.Generator(np.random.PCG64(tokens)).standard_normal(shape, dtype=np.float32)
    payload = kernels.pack(states, request.codec).data
    return Frame(FrameKind.PROBE, 0, 0, 0, codec=CODEC_IDS[request.codec], shape=shape, payload=payload)


def _check(request: MeasureLink, device: str) -> None:
    if request.peer == device:
        raise ConfigError(f"measure-link: {device} has no link to itself")
    if not 0 < request.seconds <= MAX_MEASURE_S:
        raise ConfigError(f"measure-link: seconds is {request.seconds}, must be positive and at most {MAX_MEASURE_S}")
    if not 1 <= len(request.sizes) <= MAX_MEASURED_POINTS:
        raise ConfigError(
            f"measure-link: sizes has {len(request.sizes)} entries, 1 to {MAX_MEASURED_POINTS} of (tokens, hidden size)"
        )
    for tokens, hidden in request.sizes:
        if not (1 <= tokens <= MAX_TOKENS_PER_ROW and 1 <= hidden <= MAX_HIDDEN_SIZE):
            raise ConfigError(
                f"measure-link: sizes has {tokens} tokens of {hidden}; "
                f"from 1 to {MAX_TOKENS_PER_ROW} of at most {MAX_HIDDEN_SIZE} are possible"
            )
    total_bytes = sum(payload_bytes(CODEC_IDS[request.codec], (1, *size)) for size in request.sizes)
    if total_bytes > MAX_MEASURED_BYTES:
        raise ConfigError(f"measure-link: sizes are {total_bytes} bytes together, at most {MAX_MEASURED_BYTES}")
