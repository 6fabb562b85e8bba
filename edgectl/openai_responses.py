"""JSON objects of OpenAI's answers, whole and in chunks. Pure.

Two shapes, chat and text completion, with the same methods; `shape_of` chooses. A field that OpenAI documents as
nullable is null here, never absent, except `usage` in chunks that were not asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgectl.choice_text import Piece, ShownToken
from edgectl.openai_api import Ask
from edgectl.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot say."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all objects of one answer share."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str


@dataclass(slots=True)
class WholeChoice:
    """One choice of an answer that is not streamed, as it grows."""

    text: list[str] = field(default_factory=list)
    shown: list[ShownToken] = field(default_factory=list)
    reason: str = ""

    def add(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.shown.extend(piece.tokens)


class Shape(Protocol):
    """The objects of one endpoint."""

    def opening(self, index: int) -> Json | None:
        """The chunk before a choice's first text, if the endpoint has one."""
        ...

    def delta(self, piece: Piece) -> Json: ...

    def ending(self, index: int, reason: str) -> Json: ...

    def closing(self, usage: Json) -> Json:
        """The chunk without choices that carries the usage."""
        ...

    def whole(self, choices: Sequence[WholeChoice], usage: Json) -> Json: ...


def usage_of(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def shape_of(ask: Ask, envelope: Envelope, tokenizer: Tokenizer) -> Shape:
    logprobs = ask.choices[0].sampling.logprobs
    shape = ChatShape if ask.chat else CompletionShape
    return shape(envelope, tokenizer, logprobs=logprobs, usage_in_chunks=ask.include_usage, token_ids=ask.token_ids)


class _Chunks:
    """What both shapes do alike."""

    chunk_object: str

    def __init__(
        self,
        envelope: Envelope,
        tokenizer: Tokenizer,
        *,
        logprobs: bool,
        usage_in_chunks: bool,
        token_ids: bool = False,
    ) -> None:
        self._envelope = envelope
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._usage_in_chunks = usage_in_chunks
        self._token_ids = token_ids

    def closing(self, usage: Json) -> Json:
        return {**self._chunk(), "choices": [], "usage": usage}

    def _object(self, kind: str) -> Json:
        return {
            "id": self._envelope.id,
            "object": kind,
            "created": self._envelope.created,
            "model": self._envelope.model,
        }

    def _ids(self, tokens: Sequence[ShownToken] | None) -> Json:
        """The extension `token_ids`, where it was asked for."""
        return {"token_ids": [shown.token for shown in tokens or ()]} if self._token_ids else {}

    def _chunk(self, **choice: Any) -> Json:
        chunk: Json = {**self._object(self.chunk_object), "choices": [choice]}
        return {**chunk, "usage": None} if self._usage_in_chunks else chunk


class ChatShape(_Chunks):
    """/v1/chat/completions."""

    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> Json | None:
        return self._choice(index, {"role": "assistant", "content": ""})

    def delta(self, piece: Piece) -> Json:
        return self._choice(piece.index, {"content": piece.text}, piece.tokens)

    def ending(self, index: int, reason: str) -> Json:
        return self._choice(index, {}, None, reason)

    def whole(self, choices: Sequence[WholeChoice], usage: Json) -> Json:
        rendered = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
                "logprobs": self._shown(choice.shown),
                "finish_reason": choice.reason,
                **self._ids(choice.shown),
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._object("chat.completion"), "choices": rendered, "usage": usage}

    def _choice(
        self, index: int, delta: Json, tokens: Sequence[ShownToken] | None = None, reason: str | None = None
    ) -> Json:
        logprobs = None if tokens is None else self._shown(tokens)
        return self._chunk(index=index, delta=delta, logprobs=logprobs, finish_reason=reason, **self._ids(tokens))

    def _shown(self, tokens: Sequence[ShownToken]) -> Json | None:
        if not self._logprobs:
            return None
        content = [
            {
                **self._token(shown.token, shown.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in shown.top],
            }
            for shown in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> Json:
        """`bytes` is the truth; the string shows U+FFFD where a token is only a part of a character."""
        if self._tokenizer.is_special(token):
            return {"token": self._tokenizer.token_name(token), "logprob": _finite(logprob), "bytes": None}
        raw = self._tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}


class CompletionShape(_Chunks):
    """/v1/completions."""

    chunk_object = "text_completion"

    def opening(self, index: int) -> Json | None:
        return None

    def delta(self, piece: Piece) -> Json:
        return self._choice(piece.index, piece.text, piece.tokens)

    def ending(self, index: int, reason: str) -> Json:
        return self._choice(index, "", None, reason)

    def whole(self, choices: Sequence[WholeChoice], usage: Json) -> Json:
        rendered = [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": self._shown(choice.shown),
                "finish_reason": choice.reason,
                **self._ids(choice.shown),
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._object("text_completion"), "choices": rendered, "usage": usage}

    def _choice(self, index: int, text: str, tokens: Sequence[ShownToken] | None, reason: str | None = None) -> Json:
        logprobs = None if tokens is None else self._shown(tokens)
        return self._chunk(index=index, text=text, logprobs=logprobs, finish_reason=reason, **self._ids(tokens))

    def _shown(self, tokens: Sequence[ShownToken]) -> Json | None:
        if not self._logprobs:
            return None
        return {
            "tokens": [self._name(shown.token) for shown in tokens],
            "token_logprobs": [_finite(shown.logprob) for shown in tokens],
            "top_logprobs": [self._top(shown) for shown in tokens],
            "text_offset": [shown.offset for shown in tokens],
        }

    def _top(self, shown: ShownToken) -> dict[str, float | None]:
        """The best tokens and always the chosen one; where two tokens look alike the likelier stays."""
        top: dict[str, float | None] = {self._name(shown.token): _finite(shown.logprob)}
        for token, logprob in shown.top:
            top.setdefault(self._name(token), _finite(logprob))
        return top

    def _name(self, token: int) -> str:
        """The token's text; a part of a character is written `bytes:\\xe2\\x82`, as OpenAI does."""
        if self._tokenizer.is_special(token):
            return self._tokenizer.token_name(token)
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)
