"""What the stage asks its surroundings to do: data only.

The stage returns effects in the order in which they must happen, and the worker carries them out. A Job is no effect:
the worker asks for the next one when it is free, and feeds it back when it is done. A test or a golden script can do
all that just as well, without a socket or a model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Union

from agent.wire.codec import Answered, Buffer, CodecId, Frame, FrameKind, RowRef
from agent.wire.messages import FromAgent, FromSource, Opening, Sampling
from planner.channel import Channel
from planner.types import LayerRange


@dataclass(slots=True)
class RowSampling:
    """How the last stage samples one row, and what it has sampled there since the session opened."""

    sampling: Sampling
    generated: Counter[int] = field(default_factory=Counter)


class Hands(Enum):
    """What a device does with keys and values of its pool."""

    READ = "read"
    WRITE = "write"
    PASS = "pass"
    """Nothing: what another stage said of them goes on."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of this device's layers for one frame, over as many slots from `first_slot` on as `positions` has."""

    kind: FrameKind
    micro_batch: int
    epoch: int
    step: int
    rows: tuple[RowRef, ...]
    sample: bool
    layers: LayerRange
    first_slot: int
    positions: tuple[int, ...]
    active: tuple[int, ...]
    """Index within the run of each of `rows`; the other slots are idle and compute a dummy."""
    tokens: tuple[tuple[int, ...], ...] = ()
    """Token ids per row at the source; empty elsewhere."""
    payload: Buffer = b""
    codec: CodecId = CodecId.NONE
    shape: tuple[int, int, int] = (0, 0, 0)
    outgoing: CodecId = CodecId.NONE
    """Codec of the hop behind this stage; NONE at the last stage, which samples instead."""
    choosers: tuple[RowSampling, ...] = ()
    """At the last stage, when it samples: one per row."""
    openings: tuple[Opening, ...] = ()
    answered: int = -1
    held_us: int = 0
    arrived_s: float = 0.0
    """CLOCK_MONOTONIC when the frame arrived, or at the source since when the step could have gone."""
    channel: Channel | None = None
    """Emulated: what happened to the hidden states on their way into this stage."""
    hands: Hands | None = None
    """Set where no layer is run: what becomes of keys and values. Its rows' slots count from `first_slot`, `shape` is
    (rows, tokens per row, elements of all `layers` of a token), and only rows in `active` are written."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a Job gave: packed hidden states for the next stage, or the last stage's answers."""

    payload: Buffer = b""
    shape: tuple[int, int, int] = (0, 0, 0)
    answers: tuple[Answered, ...] = ()
    started_s: float = 0.0
    finished_s: float = 0.0
    saturated: int = 0
    codec: CodecId = CodecId.NONE
    """Of keys and values that were read."""
    refused: str = ""
    """Why keys and values cannot change hands here; nothing was read or written."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a frame to the next stage's device; when it cannot leave now it stays kept and goes after the reconnect."""

    peer: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer on the connection a frame came from: refusals and pongs."""

    origin: bytes
    frame: Frame


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the coordinator something about a session, over the source's own connection."""

    message: FromSource


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the coordinator something about this device, through the supervisor."""

    message: FromAgent


@dataclass(frozen=True, slots=True)
class Connect:
    peer: str
    endpoint: str
    key: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    peer: str


Effect = Union[Send, Reply, Emit, Notify, Connect, Disconnect]
