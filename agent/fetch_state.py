"""What the core of fetching knows: requests and arrivals, tensors with their chunks, parts, sources. Pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.wire.bulk import MAX_CHUNK_BYTES

ON_DISK = "what was fetched before"
"""Stands among the contributors of a tensor for chunks of an earlier try."""
BACK_OFF_S = 5.0
LONGEST_BACK_OFF_S = 60.0
"""A silent source is asked again after the first, doubling up to the second."""


class Item(NamedTuple):
    """A tensor as the manifest tells of it."""

    name: str
    size_bytes: int


class Ask(NamedTuple):
    """A request to send. `item` is empty for the manifest."""

    source: str
    number: int
    part: str
    item: str
    offset: int
    length: int


class Arrival(NamedTuple):
    """Bytes that were wanted: to be kept by the caller."""

    part: str
    item: str
    offset: int
    is_complete: bool
    """All bytes of the item are there: now `open_part`, or `judge` for a tensor."""


@dataclass(slots=True)
class ItemState:
    """A tensor of an open part."""

    size_bytes: int
    todo: list[int]
    """Numbers of chunks to be asked for, the next one last."""
    missing: int
    """Chunks that have not arrived."""
    owner: str | None = None
    contributors: set[str] = field(default_factory=set)
    avoided: set[str] = field(default_factory=set)
    """Sources that took too long for it, while another one had nothing to do."""
    tries: int = 0
    """How often it did not match."""

    @classmethod
    def of(cls, size_bytes: int, have: Iterable[int]) -> ItemState:
        """A tensor of which chunks by number are there already."""
        there = set(have)
        todo = [number for number in reversed(range(-(-size_bytes // MAX_CHUNK_BYTES))) if number not in there]
        return cls(size_bytes, todo, len(todo), contributors={ON_DISK} if there else set())

    def next_chunk(self, source: str) -> tuple[int, int] | None:
        """Offset and length of what to ask `source` for; from now on the tensor is its."""
        if not self.todo or self.owner not in (None, source) or source in self.avoided:
            return None
        self.owner = source
        offset = self.todo.pop() * MAX_CHUNK_BYTES
        return offset, min(MAX_CHUNK_BYTES, self.size_bytes - offset)

    def put_back(self, offset: int, source: str) -> None:
        """A chunk will not come from `source`, which loses the tensor."""
        self.todo.append(offset // MAX_CHUNK_BYTES)
        self.todo.sort(reverse=True)
        if self.owner == source:
            self.owner = None

    def start_over(self) -> list[str]:
        """It did not match: everything is asked for again. Returns who gave it."""
        blamed = sorted(self.contributors)
        fresh = ItemState.of(self.size_bytes, ())
        self.todo, self.missing, self.owner, self.contributors = fresh.todo, fresh.missing, None, set()
        self.tries += 1
        return blamed


@dataclass(slots=True)
class PartState:
    """A part that is being fetched."""

    items: dict[str, ItemState] | None = None
    """None until the manifest is there."""
    manifest_bytes: int = 0
    """Of the manifest, so far."""
    manifest_asked: bool = False
    not_before_s: dict[str, float] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)
    """Sources that do not have this part."""
    refusals: int = 0
    """How often the coordinator did not give something of it."""

    def disown(self, source: str) -> None:
        """Let others have the tensors of `source`."""
        for item in (self.items or {}).values():
            if item.owner == source and item.todo:
                item.owner = None


@dataclass(slots=True)
class SourceState:
    """A peer or the coordinator."""

    connected: bool = False
    trusted: bool = True
    heard_s: float = 0.0
    resting_until_s: float = float("-inf")
    back_off_s: float = BACK_OFF_S
    asked: dict[int, tuple[Ask, float]] = field(default_factory=dict)
    """By number: what it owes, and since when."""
    problem: str = "does not answer"
