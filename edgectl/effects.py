"""What the coordinator's pure core asks its surroundings to do: the only way out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Union

from agent.wire.message import Message
from agent.wire.messages import CancelSession, MoveSplit, OpenSession, ResumeEvents, SessionEnded, TokenEvent
from edgectl.engine import EngineError
from planner.types import Plan

SessionEvent = Union[TokenEvent, SessionEnded, EngineError]


@dataclass(frozen=True, slots=True)
class Send:
    """A control message to one connection."""

    origin: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class SendSource:
    """A message about a session or a split, to wherever the worker of its source is connected now."""

    source: str
    message: OpenSession | CancelSession | ResumeEvents | MoveSplit


@dataclass(frozen=True, slots=True)
class Deliver:
    """An event of a session to whoever reads it; SessionEnded and EngineError are the last ones."""

    session: str
    event: SessionEvent


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the person who watches; `detail` names devices."""

    severity: Literal["info", "warning", "error"]
    detail: str


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a device has loaded its layers."""

    device: str
    layers_done: int
    layers_total: int
    bytes_done: int = 0
    """Of what it fetches from elsewhere; both 0 where it has the model."""
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """The plan runs: sessions may open."""

    plan: Plan
    epoch: int


@dataclass(frozen=True, slots=True)
class NoPlan:
    """Every device is there and the model does not fit on them: waiting will not help."""

    code: str
    detail: str


Effect = Union[Send, SendSource, Deliver, Notice, Loading, Ready, NoPlan]
