"""Bodies of OpenAI requests: bytes from outside to typed, range-checked structs, or an ApiError naming the parameter.

Nothing is ignored silently: a parameter we do not know or cannot honour is refused, unless its value asks for what
happens anyway (`tools: []`). Parameters about the caller's own bookkeeping (`user`, `metadata`, `store`) are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

import msgspec
from msgspec import Meta

from edgectl.engine import MAX_PRIORITY
from edgectl.openai_errors import ApiError

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 1024
"""Long enough for any delimiter; a match is searched for in every answer, so it has a bound."""
MAX_CHOICES_PER_PROMPT = 8
MAX_LOGIT_BIASES = 300
MAX_PROMPTS = 64

Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
TokenLimit = Annotated[int, Meta(ge=1)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints take; None is the same as absent."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Union[StopString, Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOP_STRINGS)], None] = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    """Extension: 0 is off."""
    ignore_eos: bool | None = None
    """Extension: only a length or a stop string ends the answer."""
    return_token_ids: bool | None = None
    """Extension: every choice and chunk says the ids of its tokens in `token_ids`."""
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    """Extension: seconds by which the request may wait longer than others of its key; lower is sooner."""
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=MAX_LOGIT_BIASES)] | None
    ) = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def token_limit(self) -> int | None:
        """Raises ApiError when both limits are given and differ."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ApiError("invalid_value", "max_tokens and max_completion_tokens differ: send one", "max_tokens")
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop


class CompletionBody(Body, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Any
    """A string, a list of strings, a list of ids or a list of lists of ids: told apart by `openai_api`."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[ContentPart, ...]
    name: str | None = None


class ChatBody(Body, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


BodyT = TypeVar("BodyT", CompletionBody, ChatBody)

_TRIVIAL: dict[type[Body], dict[str, tuple[object, ...]]] = {
    CompletionBody: {"suffix": ("",), "service_tier": ("auto", "default")},
    ChatBody: {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": (),
        "web_search_options": (),
    },
}
"""OpenAI's parameters that are not supported, with the values (besides null) that ask for nothing."""

_MESSAGE_TRIVIAL: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}
"""Fields of our own answers that clients send back in the history."""

_PATH = re.compile(r"(?s)(?P<problem>.*?)(?: - at `\$\.?(?P<path>.*)`)?")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


def parse_body(data: bytes, kind: type[BodyT]) -> BodyT:
    """One JSON body. Raises ApiError (400) naming the parameter, nothing else."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise ApiError("invalid_json", f"the body is not JSON: {problem}") from problem
    except RecursionError as problem:
        raise ApiError("invalid_json", "the body is nested too deeply") from problem
    if not isinstance(raw, dict):
        raise ApiError("invalid_json", "the body must be a JSON object")
    _refuse_strangers(raw, set(kind.__struct_fields__), _TRIVIAL[kind], "")
    if kind is ChatBody and isinstance(raw.get("messages"), list):
        _check_messages(raw["messages"])
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as problem:
        raise _named(str(problem)) from problem


def _refuse_strangers(
    raw: Mapping[str, object], known: set[str], trivial: Mapping[str, tuple[object, ...]], prefix: str
) -> None:
    """Raises ApiError for the first field that is unknown, or known to OpenAI but asking for what we cannot do."""
    for name, value in raw.items():
        if name in known or (name in trivial and value is None):
            continue
        param = prefix + name
        if name not in trivial:
            raise ApiError("unknown_parameter", f"unknown parameter: {param}", param)
        if not any(type(value) is type(harmless) and value == harmless for harmless in trivial[name]):
            raise ApiError("unsupported_parameter", f"{param} is not supported by this server", param)


def _check_messages(messages: list[object]) -> None:
    """What a struct cannot say with a helpful sentence: tools, images, strangers inside messages."""
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict):
            continue
        if message.get("role") in ("tool", "function"):
            raise ApiError("unsupported_parameter", f"{place}: tools are not supported by this server", f"{place}.role")
        _refuse_strangers(message, set(ChatMessage.__struct_fields__), _MESSAGE_TRIVIAL, f"{place}.")
        content = message.get("content")
        if content is None:
            raise ApiError("missing_parameter", f"{place}.content is missing", f"{place}.content")
        for at, part in enumerate(content if isinstance(content, list) else ()):
            where = f"{place}.content[{at}]"
            if isinstance(part, dict) and part.get("type") != "text":
                kind = part.get("type")
                raise ApiError(
                    "unsupported_parameter", f"{where}: only text parts are supported, not {kind!r}", f"{where}.type"
                )
            if isinstance(part, dict) and not isinstance(part.get("text"), str):
                raise ApiError("invalid_value", f"{where}.text: expected a string", f"{where}.text")


def _named(problem: str) -> ApiError:
    """msgspec's sentence with the parameter in front, in OpenAI's dotted form."""
    match = _PATH.fullmatch(problem)
    text, path = (match["problem"], match["path"] or "") if match else (problem, "")
    for pattern, code, word in ((_MISSING, "missing_parameter", "missing"), (_UNKNOWN, "unknown_parameter", "unknown")):
        field = pattern.fullmatch(text)
        if field:
            param = f"{path}.{field[1]}" if path else field[1]
            return ApiError(code, f"{word} parameter: {param}", param)
    path = path.replace("[...]", "")  # msgspec does not tell which key of an object
    readable = text.replace("`", "").replace(" | null", "")
    return ApiError("invalid_value", f"{path}: {readable[:1].lower()}{readable[1:]}", path or None)
