"""What `transport` reports: one small tuple per event. Knows no socket."""

from __future__ import annotations

from typing import NamedTuple, Union

from agent.wire.codec import Buffer


class Received(NamedTuple):
    """A message arrived at this device's ROUTER."""

    origin: bytes
    """Where a reply goes; means nothing beyond its connection."""
    device: str
    """Name of the sender by its CURVE key."""
    parts: list[Buffer]


class Replied(NamedTuple):
    """A message came back from a device this one connects to: a REFUSAL or a PONG."""

    peer: str
    parts: list[Buffer]


class Connected(NamedTuple):
    """The CURVE handshake succeeded: kept frames are to be sent again, in order, before anything new."""

    peer: str
    again: bool
    """Not the first time."""


class Disconnected(NamedTuple):
    peer: str


class Refused(NamedTuple):
    """The peer does not have this device's key on its list; it is dialled again by and by."""

    peer: str


class Controlled(NamedTuple):
    """A control message from the coordinator."""

    data: bytes


class ControlConnected(NamedTuple):
    again: bool


class ControlDisconnected(NamedTuple):
    pass


class ControlRefused(NamedTuple):
    """The coordinator does not have this device's key on its list."""


class Readable(NamedTuple):
    """A registered file descriptor has something to read, or was closed at its other end."""

    fd: int


ControlEvent = Union[Controlled, ControlConnected, ControlDisconnected, ControlRefused]
Event = Union[Received, Replied, Connected, Disconnected, Refused, ControlEvent, Readable]
