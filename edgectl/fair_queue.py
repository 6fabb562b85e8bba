"""Who waits for a row, and who is next: API keys take turns, and within a key the earliest deadline goes first. Pure.

Between two turns of a key that has somebody waiting, every other key has at most one: whoever sends hundreds of
requests delays the others by one of them, not by all.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(order=True, slots=True)
class _Waiting(Generic[T]):
    due_s: float
    arrival: int
    name: str = field(compare=False)
    item: T = field(compare=False)


class FairQueue(Generic[T]):
    """Items by key; each has a name of its own."""

    def __init__(self) -> None:
        self._keys: dict[str, list[_Waiting[T]]] = {}
        """Who waits, by key; the keys in the order of their turns, each list in the order of deadlines."""
        self._arrivals = 0

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._keys.values())

    def put(self, key: str, due_s: float, name: str, item: T) -> None:
        """A key that had nobody waiting gets its turn after all others."""
        self._arrivals += 1
        insort(self._keys.setdefault(key, []), _Waiting(due_s, self._arrivals, name, item))

    def pop(self) -> T | None:
        """The next one; None where nobody waits."""
        for key in self._keys:
            waiting = self._keys.pop(key)
            found = waiting.pop(0)
            if waiting:
                self._keys[key] = waiting  # behind all others
            return found.item
        return None

    def remove(self, name: str) -> T | None:
        """Takes an item out of turn; None for a name that does not wait."""
        for key, waiting in self._keys.items():
            for place, each in enumerate(waiting):
                if each.name == name:
                    del waiting[place]
                    if not waiting:
                        del self._keys[key]
                    return each.item
        return None

    def drain(self) -> list[T]:
        """Everybody, in order; nobody waits any more."""
        drained = []
        while (item := self.pop()) is not None:
            drained.append(item)
        return drained

    def names(self) -> list[str]:
        return [each.name for waiting in self._keys.values() for each in waiting]

    def by_key(self) -> dict[str, int]:
        """How many wait of each key that has any."""
        return {key: len(waiting) for key, waiting in self._keys.items()}
