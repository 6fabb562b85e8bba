"""Where a device finds another one: parts of control messages that name a device, its endpoint and its key."""

from __future__ import annotations

import msgspec

from planner.channel import Channel


class StageAddress(msgspec.Struct, frozen=True):
    """One stage of a route as its neighbours see it."""

    device: str
    endpoint: str
    """Data endpoint, `tcp://host:port`."""
    key: str
    """CURVE public key, z85."""
    start: int
    stop: int
    channel: Channel | None = None
    """Emulated: what happens to hidden states on their way into this stage."""


class LinkShape(msgspec.Struct, frozen=True):
    """An emulated link from this device to `peer`: what it would be where both really stood apart."""

    peer: str
    bytes_per_s: float = 0.0
    """0: as fast as it goes."""
    burst_bytes: int = 0
    """What leaves at once after a pause: the depth of the token bucket."""
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    """Standard deviation of the latency; frames never overtake each other."""
    seed: int = 0


class BulkSource(msgspec.Struct, frozen=True):
    """A device, or the coordinator under the name "", from which parts of a model can be fetched."""

    device: str
    endpoint: str
    key: str


class PeerKey(msgspec.Struct, frozen=True):
    device: str
    key: str
