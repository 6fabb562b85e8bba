"""What surrounds a cluster beside its devices and its order: emulated links, where weights come from, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.wire.addresses import BulkSource, LinkShape
from planner.channel import Channel

if TYPE_CHECKING:
    from edgectl.adaptive.decision import AdaptiveSettings

MAX_QUEUED_SESSIONS = 64
"""Sessions that wait for a row: one client's burst fits, and the last of 64 waits minutes for its first token."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Settled before the first device says Hello."""

    links: Mapping[str, tuple[LinkShape, ...]] = field(default_factory=dict)
    """Emulated links by the device they begin at."""
    channels: Mapping[tuple[str, str], Channel] = field(default_factory=dict)
    """What emulated links do to hidden states, by the link's two ends."""
    bulk: BulkSource | None = None
    """Where devices without the model fetch it from the coordinator."""
    max_queued: int = MAX_QUEUED_SESSIONS
    max_sessions_per_key: int = 0
    """Sessions of one API key that wait or run; 0: no limit."""
    adaptive: AdaptiveSettings | None = None
    """Who moves split points; None: nobody does."""
