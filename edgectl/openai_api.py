"""From a checked body to the sessions it asks for: ids, lengths, sampling parameters. Pure but for the tokenizer.

One body makes one or more choices (`n`, batches of prompts); each choice is one session. Sample `j` of a prompt has
seed `seed + j`, so a batch answers exactly as its prompts would one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.wire.messages import Sampling
from edgectl.openai_errors import ApiError
from edgectl.openai_requests import MAX_PROMPTS, Body, ChatBody, ChatMessage, CompletionBody
from edgectl.tokenizer import ChatTemplateError, Tokenizer

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may use the rest of the context."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One session to open and how its tokens become text."""

    index: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    begins_text: bool
    """The answer stands alone (a leading space of SentencePiece is dropped) instead of going on with the prompt."""
    echo: str = ""
    """Text sent before the first token."""
    ignore_eos: bool = False
    """Stop ids are tokens like any other."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Everything one HTTP request wants."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    """Each prompt once, however many samples it gets."""
    chat: bool
    stream: bool
    include_usage: bool
    token_ids: bool = False
    """Token ids are sent with the text."""
    priority: int = 0
    """Lower is sooner; see `edgectl.engine.Claim`."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: tuple[int, ...]
    text: Callable[[], str]
    param: str


def read_completion(body: CompletionBody, tokenizer: Tokenizer, context: int, draw_seed: Callable[[], int]) -> Ask:
    """Raises ApiError (400) naming the parameter. `draw_seed` is asked once per prompt where no seed is given."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError("unsupported_parameter", "best_of is not supported unless it equals n", "best_of")
    if body.echo and body.logprobs is not None:
        message = "echo with logprobs is not supported: log-probabilities exist for generated tokens only"
        raise ApiError("unsupported_parameter", message, "logprobs")
    prompts = _prompts(body.prompt, tokenizer)
    choices: list[Choice] = []
    for prompt in prompts:
        limit = _token_limit(body, len(prompt.ids), context, COMPLETION_MAX_TOKENS, prompt.param)
        seed = draw_seed() if body.seed is None else body.seed
        sampling = _sampling(body, tokenizer, body.logprobs is not None, body.logprobs or 0)
        for sample in range(body.n or 1):
            choices.append(
                Choice(
                    index=len(choices),
                    prompt=prompt.ids,
                    max_tokens=limit,
                    sampling=_seeded(sampling, seed + sample),
                    stop=body.stop_strings,
                    begins_text=all(tokenizer.is_special(token) for token in prompt.ids),
                    echo=prompt.text() if body.echo else "",
                    ignore_eos=bool(body.ignore_eos),
                )
            )
    return _ask(body, choices, sum(len(prompt.ids) for prompt in prompts), chat=False)


def read_chat(body: ChatBody, tokenizer: Tokenizer, context: int, draw_seed: Callable[[], int]) -> Ask:
    """Raises ApiError (400) naming the parameter; `no_chat_template` where the model has none."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    if not tokenizer.has_chat_template:
        message = (
            "this model has no chat template (neither chat_template in tokenizer_config.json nor chat_template.jinja): "
            "use /v1/completions"
        )
        raise ApiError("no_chat_template", message, "messages")
    try:
        prompt = tuple(tokenizer.encode_chat([_template_message(message) for message in body.messages]))
    except ChatTemplateError as problem:
        message = f"the model's chat template refused the messages: {problem}"
        raise ApiError("invalid_value", message, "messages") from problem
    except ValueError as problem:
        raise ApiError("invalid_value", f"messages: {problem}", "messages") from problem
    if not prompt:
        raise ApiError("invalid_value", "messages: the chat template makes no tokens of them", "messages")
    limit = _token_limit(body, len(prompt), context, None, "messages")
    seed = draw_seed() if body.seed is None else body.seed
    sampling = _sampling(body, tokenizer, bool(body.logprobs), body.top_logprobs or 0)
    choices = [
        Choice(
            index,
            prompt,
            limit,
            _seeded(sampling, seed + index),
            body.stop_strings,
            begins_text=True,
            ignore_eos=bool(body.ignore_eos),
        )
        for index in range(body.n or 1)
    ]
    return _ask(body, choices, len(prompt), chat=True)


def _ask(body: Body, choices: Sequence[Choice], prompt_tokens: int, *, chat: bool) -> Ask:
    if body.stream_options is not None and not body.stream:
        raise ApiError("invalid_value", "stream_options needs stream: true", "stream_options")
    return Ask(
        choices=tuple(choices),
        prompt_tokens=prompt_tokens,
        chat=chat,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options is not None and body.stream_options.include_usage),
        token_ids=bool(body.return_token_ids),
        priority=body.priority or 0,
    )


def _template_message(message: ChatMessage) -> dict[str, str]:
    """What a chat template sees: text parts joined by newlines, `developer` as the older word `system`."""
    content = message.content
    if not isinstance(content, str):
        content = "\n".join(part.text or "" for part in content)
    role = "system" if message.role == "developer" else message.role
    fields = {"role": role, "content": content}
    return fields if message.name is None else {**fields, "name": message.name}


def _prompts(prompt: Any, tokenizer: Tokenizer) -> list[_Prompt]:
    """The four forms of `prompt`, told apart by their first elements."""
    if isinstance(prompt, str):
        return [_text_prompt(prompt, tokenizer, "prompt")]
    if not isinstance(prompt, list) or not prompt:
        raise ApiError("invalid_value", "prompt: expected a string or a list that is not empty", "prompt")
    if isinstance(prompt[0], int):
        return [_id_prompt(prompt, tokenizer, "prompt")]
    if len(prompt) > MAX_PROMPTS:
        raise ApiError("invalid_value", f"prompt: {len(prompt)} prompts, at most {MAX_PROMPTS}", "prompt")
    prompts = []
    for number, item in enumerate(prompt):
        param = f"prompt[{number}]"
        if isinstance(item, str):
            prompts.append(_text_prompt(item, tokenizer, param))
        elif isinstance(item, list):
            prompts.append(_id_prompt(item, tokenizer, param))
        else:
            raise ApiError("invalid_value", f"{param}: expected a string or a list of token ids", param)
    return prompts


def _text_prompt(text: str, tokenizer: Tokenizer, param: str) -> _Prompt:
    try:
        ids = tokenizer.encode(text)
    except ValueError as problem:
        raise ApiError("invalid_value", f"{param}: {problem}", param) from problem
    if not ids:
        raise ApiError("invalid_value", f"{param}: is empty, and this model has no token to begin with", param)
    return _Prompt(tuple(ids), lambda: text, param)


def _id_prompt(ids: list[Any], tokenizer: Tokenizer, param: str) -> _Prompt:
    if not ids:
        raise ApiError("invalid_value", f"{param}: is empty", param)
    for at, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < tokenizer.vocab_size:
            message = f"{param}[{at}]: expected a token id from 0 to {tokenizer.vocab_size - 1}"
            raise ApiError("invalid_value", message, f"{param}[{at}]")
    return _Prompt(tuple(ids), lambda: tokenizer.decode(ids), param)


def _token_limit(body: Body, prompt_tokens: int, context: int, default: int | None, param: str) -> int:
    """How many tokens may be generated. Raises ApiError with the numbers when prompt and answer do not fit."""
    asked = body.token_limit
    room = context - prompt_tokens
    if room < 1 or (asked is not None and asked > room):
        wish = "at least 1" if asked is None else str(asked)
        message = (
            f"this model's context is {context} tokens, but {prompt_tokens} (prompt) + {wish} (answer) were asked for"
        )
        raise ApiError("context_length_exceeded", message, param)
    if asked is not None:
        return asked
    return room if default is None else min(default, room)


def _sampling(body: Body, tokenizer: Tokenizer, logprobs: bool, top_logprobs: int) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body.logit_bias or {}, tokenizer.vocab_size),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    """`sampling` with a seed, modulo 2^64 as the counter-based generator's key takes it."""
    return msgspec.structs.replace(sampling, seed=seed % 2**64)


def _logit_bias(biases: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    entries = []
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            message = f"logit_bias: {key[:40]!r} is not a token id from 0 to {vocab_size - 1}"
            raise ApiError("invalid_value", message, "logit_bias")
        entries.append((int(key), bias))
    return tuple(sorted(entries))
