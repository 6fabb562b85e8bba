"""Finding stop strings in text that arrives in pieces, without ever letting a part of one out.

Each stop string is a Knuth-Morris-Pratt automaton (SIAM J. Comput. 6(2), 1977) fed one character at a time, so the
result does not depend on where the pieces are cut and the time is linear. The first string to be completed wins; of
several completed by the same character, the longest.
"""

from __future__ import annotations

from collections.abc import Sequence


def _borders(pattern: str) -> list[int]:
    """borders[k]: length of the longest proper prefix of pattern[:k] that is also its suffix."""
    borders = [0] * (len(pattern) + 1)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[index] != pattern[matched]:
            matched = borders[matched]
        matched += pattern[index] == pattern[matched]
        borders[index + 1] = matched
    return borders


class StopStrings:
    """Cuts a text at the first stop string; `patterns` must not hold empty ones."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [(pattern, _borders(pattern)) for pattern in patterns]
        self._matched = [0] * len(self._patterns)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is now known to be before any stop string; after a match (`found`) nothing more comes."""
        if not self._patterns:
            return text
        if self.found:
            return ""
        self._held += text
        start = len(self._held) - len(text)
        for index in range(start, len(self._held)):
            longest = self._step(self._held[index])
            if longest:
                self.found = True
                return self._take(index + 1 - longest)
        return self._take(len(self._held) - max(self._matched))

    def flush(self) -> str:
        """The text that was held back as the possible beginning of a stop string, when none can follow."""
        return "" if self.found else self._take(len(self._held))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _step(self, character: str) -> int:
        """Feed one character; the length of the longest pattern it completes, else 0."""
        completed = 0
        for which, (pattern, borders) in enumerate(self._patterns):
            matched = self._matched[which]
            while matched and pattern[matched] != character:
                matched = borders[matched]
            matched += pattern[matched] == character
            if matched == len(pattern):
                completed = max(completed, matched)
            self._matched[which] = matched
        return completed
