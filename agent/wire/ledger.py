"""Of how many tokens a device has keys and values: for each row, and each layer that may change hands. Pure.

Both ends of the first hop keep one of the stage behind the source, from the same frames, and the source one of itself.
Keys and values of a position never change once they are there, so what a device has had stays of use to it: a split
point that moves back and forth costs what came in between.
"""

from __future__ import annotations


class Ledger:
    """Rows × layers `start .. stop - 1`; other layers are of no interest and count as complete."""

    def __init__(self, rows: int, start: int, stop: int) -> None:
        self._start = start
        self._stop = stop
        self._held = [[0] * (stop - start) for _ in range(rows)]

    def clear(self, row: int) -> None:
        """The row's session is another one from now on."""
        self._held[row] = [0] * len(self._held[row])

    def ran(self, row: int, start: int, stop: int, tokens: int) -> None:
        """The device has run these layers: they hold so many tokens now, and nothing behind them."""
        for index in self._indices(start, stop):
            self._held[row][index] = tokens

    def copied(self, row: int, start: int, stop: int, tokens: int) -> None:
        """Keys and values of these layers have come, up to so many tokens."""
        held = self._held[row]
        for index in self._indices(start, stop):
            held[index] = max(held[index], tokens)

    def lacks(self, row: int, start: int, stop: int, tokens: int) -> bool:
        """One of these layers has fewer than so many tokens of the row."""
        held = self._held[row]
        return any(held[index] < tokens for index in self._indices(start, stop))

    def holds(self, row: int, start: int, stop: int) -> int:
        """Tokens that all of these layers have, at least one of which must be of interest."""
        held = self._held[row]
        return min(held[index] for index in self._indices(start, stop))

    def _indices(self, start: int, stop: int) -> range:
        return range(max(start, self._start) - self._start, min(stop, self._stop) - self._start)
