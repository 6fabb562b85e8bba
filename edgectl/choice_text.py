"""The text of one choice: token events in, pieces that may be sent out. Pure.

Three things hold text back: a character whose bytes are not complete, text that may be the beginning of a stop
string, and nothing else. A token is shown (its log-probability sent) with the piece in which its text begins.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from agent.wire.messages import TokenEvent
from edgectl.detokenizer import Detokenizer
from edgectl.openai_api import Choice
from edgectl.stop_strings import StopStrings
from edgectl.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token whose text (or its beginning) is sent."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int
    """Character of the choice's text, echo included, at which the token begins."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to append to one choice."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...] = ()


class ChoiceText:
    """Detokenizes one choice and cuts it at its first stop string."""

    def __init__(self, choice: Choice, tokenizer: Tokenizer) -> None:
        self._choice = choice
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer()
        self._stops = StopStrings(choice.stop)
        self._at_start = choice.begins_text
        self._decoded = len(choice.echo)
        self._sent = len(choice.echo)
        self._hidden: deque[ShownToken] = deque()
        self.tokens = 0
        """Tokens that count: those up to and including the one that completed a stop string."""

    @property
    def stopped(self) -> bool:
        """A stop string was found: nothing more may be pushed."""
        return self._stops.found

    def push(self, event: TokenEvent) -> Piece | None:
        """The piece that this token makes sendable, if any."""
        self.tokens += 1
        self._hidden.append(ShownToken(event.token, event.logprob, event.top, self._decoded))
        text = self._detokenizer.push(self._token_bytes(event.token))
        self._decoded += len(text)
        return self._piece(self._stops.push(text), last=False)

    def finish(self) -> Piece | None:
        """What is still held back when the choice ends; nothing after a stop string."""
        return None if self.stopped else self._piece(self._stops.flush(), last=True)

    def _token_bytes(self, token: int) -> bytes:
        if not self._at_start:
            return self._tokenizer.token_bytes(token)
        self._at_start = self._tokenizer.is_special(token)
        return self._tokenizer.first_token_bytes(token)

    def _piece(self, text: str, *, last: bool) -> Piece | None:
        self._sent += len(text)
        shown = []
        while self._hidden and (last or self._hidden[0].offset < self._sent):
            shown.append(self._hidden.popleft())
        return Piece(self._choice.index, text, tuple(shown)) if text or shown else None
