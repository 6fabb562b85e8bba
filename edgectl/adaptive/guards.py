"""Guard rails of a moving split: whether a proposal may be carried out, and if not, why. Pure.

A controller knows the channel and nothing else. Here is what a move costs, and what stands against it: layers that are
not there, memory, devices nobody hears, a move under way, one that has just been, and a gain that does not pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edgectl.adaptive.link_view import LinkView
from rl.controller import Proposal

Guard = Literal["stay", "not-resident", "memory", "suspected", "under-way", "back-off", "dwell", "gain", "shadow"]
GUARDS: tuple[str, ...] = get_args(Guard)

HORIZON_DECISIONS = 5
"""For so many decisions a channel is taken to stay as it is: the length of the paper's episodes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How eagerly a split is moved."""

    interval_tokens: int = 16
    """Of a session between two decisions: a third of a second where a token takes 20 ms."""
    dwell_tokens: int = 32
    """Between two moves at least: two decisions."""
    back_off_tokens: int = 128
    """After a move that was not carried out."""
    move_weight: float = 0.1
    """Reward that a move costs which takes as long as one interval: the authors' reward of one layer of ten."""
    is_shadow: bool = False
    """Nothing is moved: proposals are logged."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What a move sends: keys and values of the layers that change hands."""

    bytes: int
    ms: float | None
    """None where nobody knows how quick the link is."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a micro-batch stands when a move is judged."""

    split: int
    split_points: Sequence[int]
    source: str
    peer: str
    held: str
    """What the two devices hold, in words."""
    handover: Handover
    token_ms: float | None
    remaining_tokens: float
    """Of its sessions, on average; 0 where none runs yet."""
    is_idle: bool
    """No session's keys and values would have to move."""
    since_move_tokens: float = math.inf
    back_off_tokens: float = 0.0
    kept_because: str = ""
    under_way: str = ""
    """Which move is: of this micro-batch, or of another one over this link."""
    suspected: Sequence[str] = ()
    full: str = ""
    """Which of the two devices has less memory than it takes."""


def handover(
    view: LinkView,
    layers: int,
    positions: Sequence[int],
    kv_bytes_per_token_layer: int,
    moved_bytes_per_s: float | None = None,
) -> Handover:
    """Bytes of keys and values that so many layers of sessions at these positions have, and how long they take: at the
    rate of the last move over this link, which left room for tokens, else at the link's goodput."""
    size_bytes = layers * sum(positions) * kv_bytes_per_token_layer
    if not size_bytes:
        return Handover(0, 0.0)
    goodput = None if view.is_lower_bound else view.goodput_bytes_per_s
    rate = moved_bytes_per_s or goodput
    return Handover(size_bytes, (view.rtt_ms or 0.0) + 1e3 * size_bytes / rate if rate else None)


def judge(proposal: Proposal, place: Place, limits: Limits) -> tuple[Guard | None, str]:
    """What stands against a proposal, and in words; None: nothing, and why it is made."""
    split = proposal.split
    if split == place.split:
        return "stay", proposal.reason or "the present split is the best known"
    if split not in place.split_points:
        return "not-resident", f"split {split} is not possible: {place.held}"
    if place.full:
        return "memory", place.full
    if place.suspected:
        return "suspected", f"{', '.join(place.suspected)} was not heard for a while"
    if place.under_way:
        return "under-way", place.under_way
    if place.back_off_tokens > 0:
        left = math.ceil(place.back_off_tokens)
        return "back-off", f"the last move was not carried out ({place.kept_because}); again in {left} tokens"
    if not place.is_idle and place.since_move_tokens < limits.dwell_tokens:
        since = math.floor(place.since_move_tokens)
        return "dwell", f"it moved {since} tokens ago; {limits.dwell_tokens} are waited"
    gain = _gain(proposal, place, limits)
    if gain is not None:
        return "gain", gain
    reason = proposal.reason or "proposed"
    return ("shadow", f"shadow: {reason}") if limits.is_shadow else (None, reason)


def _gain(proposal: Proposal, place: Place, limits: Limits) -> str | None:
    """Why the gain does not pay; None where it does, or where the controller cannot say what it is."""
    if proposal.gain is None:
        return None
    remaining = place.remaining_tokens / limits.interval_tokens
    decisions = 1.0 if place.is_idle else min(remaining, HORIZON_DECISIONS)
    cost = 0.0
    cost_text = "0" if place.is_idle else "not known"
    if not place.is_idle and place.handover.ms is not None and place.token_ms:
        cost = limits.move_weight * place.handover.ms / (limits.interval_tokens * place.token_ms)
        cost_text = f"{cost:.3f}, {place.handover.bytes} bytes in {place.handover.ms:.0f} ms"
    expected = proposal.gain * decisions
    # A gain that is no number is none.
    if expected > cost:
        return None
    return f"a gain of {proposal.gain:.4f} over {decisions:.1f} decisions does not pay for the move ({cost_text})"
