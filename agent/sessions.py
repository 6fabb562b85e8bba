"""Sessions at the source: prompt, position, limits and the tokens so far. Pure: no tensors, sockets or clock.

Rules
1. A session moves only along TRANSITIONS; everything else is a bug and raises KeyError.
2. A prefill chunk is never a single token unless the prompt is: attention at length one rounds differently, and
   tokens must not depend on where a prompt was cut (ARCHITECTURE.md, invariants).
3. Tokens named in `emitted` are replayed as decode steps, not sampled anew and not reported again.
4. What no device could run or sample is refused before it has a row: in a run it would fail everybody beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from agent.compute.sampling import CannotSample, check_params
from agent.errors import AgentError
from agent.wire.codec import Answered
from agent.wire.messages import (
    EndReason,
    FromSource,
    OpenSession,
    SessionEnded,
    SessionFailed,
    SessionMoved,
    TokenEvent,
)

MAX_PATIENCE_S = 86_400.0
MAX_LOGIT_BIASES = 300
"""As many as the opening of a row has room for (`codec.MAX_OPENINGS_BYTES`)."""
MAX_TOP_LOGPROBS = 20
"""As many as sixteen rows' answers have room for (`codec.MAX_ANSWER_BYTES`)."""


class SessionState(Enum):
    PREFILL = "prefill"
    """Chunks of the prompt are still to be sent."""
    WAITING = "waiting"
    """The answer that carries the next token is on its way."""
    READY = "ready"
    """The next decode step can be sent."""
    ENDED = "ended"


class Happened(Enum):
    LAST_CHUNK_SENT = "last chunk sent"
    TOKEN_CAME = "token came"
    DECODE_SENT = "decode sent"
    FINISHED = "finished"


TRANSITIONS: dict[tuple[SessionState, Happened], SessionState] = {
    (SessionState.PREFILL, Happened.LAST_CHUNK_SENT): SessionState.WAITING,
    (SessionState.PREFILL, Happened.FINISHED): SessionState.ENDED,
    (SessionState.WAITING, Happened.TOKEN_CAME): SessionState.READY,
    (SessionState.WAITING, Happened.FINISHED): SessionState.ENDED,
    (SessionState.READY, Happened.DECODE_SENT): SessionState.WAITING,
    (SessionState.READY, Happened.FINISHED): SessionState.ENDED,
}


def next_chunk_length(remaining: int, largest: int) -> int:
    """Tokens of the next chunk, at most `largest` (≥ 3), so that neither it nor the rest is a single token; a prompt
    of one token is."""
    if remaining <= largest:
        return remaining
    return largest - 1 if remaining - largest == 1 else largest


def chunk_lengths(tokens: int, largest: int) -> list[int]:
    """A whole prompt in chunks of at most `largest` (≥ 3) tokens: as few as possible."""
    lengths = []
    while tokens:
        lengths.append(next_chunk_length(tokens, largest))
        tokens -= lengths[-1]
    return lengths


def check_session(opened: OpenSession, context: int, vocab_size: int) -> None:
    """Raises AgentError, naming what no row of `context` positions can run or no logits can be sampled with."""

    def refuse(problem: str) -> AgentError:
        return AgentError(f"session {opened.session}: {problem}")

    if not opened.prompt or len(opened.prompt) >= context or opened.max_tokens < 1:
        raise refuse(
            f"a prompt of {len(opened.prompt)} tokens and {opened.max_tokens} more do not fit a context of {context}"
        )
    for name, tokens in (("prompt", opened.prompt), ("emitted", opened.emitted)):
        low, high = min(tokens, default=0), max(tokens, default=0)
        if low < 0 or high >= vocab_size:
            raise refuse(f"token ids {low} to {high} in `{name}` do not lie in 0 to {vocab_size - 1}")
    if not 0.0 <= opened.patience_s <= MAX_PATIENCE_S:
        raise refuse(f"a patience of {opened.patience_s} s, 0 to {MAX_PATIENCE_S} s")
    sampling = opened.sampling
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES or sampling.top_logprobs > MAX_TOP_LOGPROBS:
        raise refuse(
            f"{len(sampling.logit_bias)} logit biases and {sampling.top_logprobs} top log-probabilities, "
            f"at most {MAX_LOGIT_BIASES} and {MAX_TOP_LOGPROBS}"
        )
    try:
        check_params(sampling, vocab_size)
    except CannotSample as problem:
        raise refuse(str(problem)) from problem


@dataclass(slots=True)
class Session:
    """One sequence at its source."""

    opened: OpenSession
    row: int
    generation: int
    opened_s: float = 0.0
    ready_s: float = 0.0
    """Since when the next decode step can be sent."""
    state: SessionState = SessionState.PREFILL
    position: int = 0
    """Tokens sent into the pipeline so far."""
    split: int = 0
    """Where its hidden states leave the source, if the route may be cut elsewhere."""
    tokens: list[int] = field(default_factory=list)
    events: list[FromSource] = field(default_factory=list)
    """Everything reported to the coordinator, for ResumeEvents."""

    def moved(self, split: int) -> list[FromSource]:
        """From its next token on its hidden states leave after another layer; also reported of its first one."""
        self.split = split
        return self._report(SessionMoved(self.opened.session, self.position, split))

    @property
    def is_decoding(self) -> bool:
        """All of its prompt has been sent."""
        return self.state in (SessionState.WAITING, SessionState.READY)

    @property
    def has_ended(self) -> bool:
        return self.state is SessionState.ENDED

    def happened(self, what: Happened) -> None:
        self.state = TRANSITIONS[self.state, what]

    def due_s(self, s_per_token: float) -> float:
        """When its first token is due: after its patience and the time that its prompt takes at `s_per_token`, so that
        a short one need not wait for a long one, and no longer than that for whatever comes later."""
        return self.opened_s + self.opened.patience_s + len(self.opened.prompt) * s_per_token

    @property
    def remaining(self) -> int:
        """Tokens of the prompt that are still to be sent."""
        return max(0, len(self.opened.prompt) - self.position)

    def next_chunk(self, largest: int) -> tuple[tuple[int, ...], bool]:
        """The next chunk of the prompt and whether it is the last; advances the position."""
        length = next_chunk_length(self.remaining, largest)
        chunk = self.opened.prompt[self.position : self.position + length]
        self.position += length
        is_last = self.remaining == 0
        if is_last:
            self.happened(Happened.LAST_CHUNK_SENT)
        return chunk, is_last

    def next_token(self) -> int:
        """The token of the next decode step; advances the position."""
        self.position += 1
        self.happened(Happened.DECODE_SENT)
        return self.tokens[-1]

    def take(self, answer: Answered, context: int) -> list[FromSource]:
        """A sampled token came: events for the coordinator, the last of which may end the session."""
        index = len(self.tokens)
        replayed = index < len(self.opened.emitted)
        token = self.opened.emitted[index] if replayed else answer.token
        self.tokens.append(token)
        self.happened(Happened.TOKEN_CAME)
        events = (
            [] if replayed else self._report(TokenEvent(self.opened.session, index, token, answer.logprob, answer.top))
        )
        if token in self.opened.stop_ids:
            events += self.end("stop")
        elif len(self.tokens) >= self.opened.max_tokens or self.position >= context:
            events += self.end("length")
        return events

    def end(self, reason: EndReason) -> list[FromSource]:
        self.happened(Happened.FINISHED)
        return self._report(SessionEnded(self.opened.session, reason, len(self.tokens)))

    def fail(self, code: str, detail: str) -> list[FromSource]:
        self.happened(Happened.FINISHED)
        return self._report(SessionFailed(self.opened.session, code, detail))

    def _report(self, event: FromSource) -> list[FromSource]:
        self.events.append(event)
        return [event]

    def events_from(self, index: int) -> Sequence[FromSource]:
        """Events to send again to a coordinator that has the tokens below `index`."""
        return [e for e in self.events if not isinstance(e, TokenEvent) or e.index >= index]
