"""How many bytes of keys and values occupy a link for a little while: learnt from the slices that went. Pure."""

from __future__ import annotations

from typing import NamedTuple

SLICE_S = 0.02
"""A slice is meant to occupy a link for so long: a token's frame waits behind it."""
FIRST_SLICE_BYTES = 8 << 10
"""Before anything is known of the link: 65 ms at 1 Mbit/s, and then no token waits for it."""
LEAST_SLICE_BYTES = 4 << 10
MOST_SLICE_BYTES = 1 << 20
"""Read, checked, sealed and written in a few milliseconds by a slow device."""
GROWTH = 2.0
"""From one slice to the next they grow at most so many times."""
SHRINKAGE = 0.25


class _Quickest(NamedTuple):
    wire_s: float
    bytes: int


class SliceSize:
    """Of the slices of one micro-batch."""

    def __init__(self) -> None:
        self.bytes = float(FIRST_SLICE_BYTES)
        self._quickest: _Quickest | None = None

    @property
    def is_known(self) -> bool:
        """A slice has gone already."""
        return self._quickest is not None

    def learn(self, size: int, wire_s: float) -> None:
        """A slice of so many bytes was in wires for so long, there and back, with whatever it waited for on its way."""
        before = self._quickest
        if before is None or wire_s < before.wire_s:
            self._quickest = _Quickest(wire_s, size)
        if before is None or (size <= before.bytes and wire_s <= before.wire_s + SLICE_S):
            wanted = self.bytes * GROWTH
        elif size <= before.bytes:
            wanted = self.bytes / GROWTH
        else:
            # What it took longer than the quickest one, it took for being longer, or it waited somewhere.
            wanted = (size - before.bytes) * SLICE_S / max(wire_s - before.wire_s, SLICE_S / 64)
        # A slice that was shorter than it might have been says little of longer ones.
        wanted = max(wanted, self.bytes) if size < self.bytes / 2 else wanted
        self.bytes = min(max(wanted, self.bytes * SHRINKAGE, LEAST_SLICE_BYTES), self.bytes * GROWTH, MOST_SLICE_BYTES)
