"""What an emulated radio does to hidden states on their way over a link: data only.

A channel's state is a function of a token's position in its session, never of time, so that an experiment repeats
exactly. Agents apply it (`agent.compute.damage`), `rl.channel` draws it from distributions, `cluster.toml` and
`edgectl eval` name it. "Adaptive Layer Splitting for Wireless LLM Inference" (arXiv 2406.02616), equation 3, has
y' = h y + w with a gain h and noise w; a lost element is zero unless it is concealed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Granularity = Literal["element", "packet"]
"""What is lost at once: one element of the hidden states, or a datagram's worth of them."""
Concealment = Literal["zero", "rescale", "mean", "previous", "lmmse"]
"""What a receiver puts in place of what is lost: nothing; nothing, and 1/(1-p) times the rest; the element's mean; what
it was for the token before; or what it most likely is, given the elements that came (linear minimum mean square
error)."""
Protection = Literal["none", "repeat", "int8"]
"""What is sent twice of the few elements with the most energy: nothing, themselves, or a copy in eight bits."""

MAX_STATES = 8192
"""A trace of one state per token for a context that long; 100 bytes each fit a control message."""
MAX_COHERENCE_TOKENS = 1 << 20
MAX_SEED = (1 << 64) - 1
MIN_PACKET_BYTES, MAX_PACKET_BYTES = 64, 65507
"""Of a datagram's payload: no IP network carries more than the last number in one."""


@dataclass(frozen=True, slots=True)
class ChannelState:
    """The channel while it stays as it is. Raises ValueError."""

    loss: float = 0.0
    """Probability that an element, or a packet, is lost."""
    sigma: float = 0.0
    """Standard deviation of the Gaussian noise on each element, in units of the hidden states."""
    gain: float = 1.0
    """h: what comes is h times what was sent. 1: none, or the receiver has undone it."""
    snr_db: float | None = None
    """Noise by the token's own mean square in place of `sigma`: SNR = E[y^2] h^2 / sigma^2, in decibels."""
    m: float | None = None
    """Nakagami shape that gain and loss were drawn with, where they were: what a policy observes."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.loss <= 1.0:
            raise ValueError(f"loss {self.loss} is no probability")
        if not 0.0 <= self.sigma < math.inf or not 0.0 <= self.gain < math.inf:
            raise ValueError(f"sigma {self.sigma}, gain {self.gain}: finite numbers from 0 on are expected")
        if self.snr_db is not None and not -200.0 <= self.snr_db <= 200.0:
            raise ValueError(f"an SNR of {self.snr_db} dB is outside -200 to 200")
        if self.m is not None and not 0.5 <= self.m < math.inf:
            raise ValueError(f"m {self.m}: a Nakagami distribution has 0.5 or more")

    @property
    def is_clean(self) -> bool:
        return self.loss == 0.0 and self.sigma == 0.0 and self.gain == 1.0 and self.snr_db is None


@dataclass(frozen=True, slots=True)
class Channel:
    """A realisation of a channel, and what sender and receiver do about it. Raises ValueError."""

    states: tuple[ChannelState, ...]
    """One for `coherence_tokens` positions each; after the last one the first comes again."""
    seed: int = 0
    """Of which elements are lost, and of the noise."""
    coherence_tokens: int = 1
    granularity: Granularity = "element"
    packet_bytes: int = 1200
    """Payload of a datagram; what a path takes that is no Ethernet throughout."""
    interleaved: bool = False
    """A packet's elements lie far apart."""
    concealment: Concealment = "zero"
    protection: Protection = "none"

    def __post_init__(self) -> None:
        if not 1 <= len(self.states) <= MAX_STATES:
            raise ValueError(f"a channel of {len(self.states)} states, 1 to {MAX_STATES} are possible")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed {self.seed}: 64 bits are expected")
        if not 1 <= self.coherence_tokens <= MAX_COHERENCE_TOKENS:
            raise ValueError(f"coherence of {self.coherence_tokens} tokens, 1 to {MAX_COHERENCE_TOKENS}")
        if not MIN_PACKET_BYTES <= self.packet_bytes <= MAX_PACKET_BYTES:
            raise ValueError(f"packets of {self.packet_bytes} bytes, {MIN_PACKET_BYTES} to {MAX_PACKET_BYTES}")

    @property
    def is_clean(self) -> bool:
        return all(state.is_clean for state in self.states)

    def state_at(self, position: int) -> ChannelState:
        """The state at a token's position in its session."""
        return self.states[position // self.coherence_tokens % len(self.states)]


def erasing(loss: float, seed: int = 0) -> Channel:
    """Elements are lost with one probability throughout, and nothing is done about it."""
    return Channel((ChannelState(loss=loss),), seed)
