"""What chooses split points: what it sees, what it proposes, and the protocol that policies and tables satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Observation:
    """The channel between the source and the next device, and where the route is split now. None: not known."""

    split: int
    """Layers on the source."""
    loss: float | None = None
    """Share of the elements of hidden states that are lost."""
    sigma: float | None = None
    """Standard deviation of the noise on them."""
    m: float | None = None
    """Nakagami shape of the fading."""
    rtt_ms: float | None = None
    goodput_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A split point, and what it is expected to be better by."""

    split: int
    gain: float | None = None
    """Reward per decision at the proposed split less that at the present one; None where the controller cannot say."""
    reason: str = ""
    """In a few words, for status and log."""


class Controller(Protocol):
    """Chooses the next split point; the same observations give the same proposals."""

    @property
    def name(self) -> str: ...

    @property
    def splits(self) -> tuple[int, ...]:
        """Split points it may propose, ascending."""

    def propose(self, observation: Observation) -> Proposal:
        """Raises ValueError for a split it does not know; proposes the present split where the channel is unknown."""
