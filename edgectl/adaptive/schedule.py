"""A session's damage schedule: from which position on its hidden states leave the source after which layer. Pure.

Together with the link's channel, whose states are functions of a token's position, it says everything that happened to
a session on its way: an offline run of it gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SplitSchedule:
    """((position, split), …), positions ascending from 0, no split twice in a row."""

    def __init__(self, split: int) -> None:
        self._entries: list[tuple[int, int]] = [(0, split)]

    @property
    def entries(self) -> tuple[tuple[int, int], ...]:
        return tuple(self._entries)

    @property
    def split(self) -> int:
        """Where the session is split now."""
        return self._entries[-1][1]

    def moved(self, position: int, split: int) -> None:
        """From `position` on it leaves after `split` layers; what was said of later positions is void.

        Raises ValueError for a position below 0.
        """
        if position < 0:
            raise ValueError(f"position {position} is before the first")
        while self._entries and self._entries[-1][0] >= position:
            self._entries.pop()
        if not self._entries or self._entries[-1][1] != split:
            self._entries.append((position if self._entries else 0, split))

    def at(self, position: int) -> int:
        """The split that a position passed with."""
        return next(split for begin, split in reversed(self._entries) if begin <= position)


@dataclass(frozen=True, slots=True)
class EndedSchedule:
    """What is kept of a session that has ended, for whoever wants to run it again."""

    session: str
    micro_batch: int
    route: int
    prompt_tokens: int
    tokens: int
    entries: Sequence[tuple[int, int]]
