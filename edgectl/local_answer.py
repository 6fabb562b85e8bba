"""`generate --local`: one answer from a model in this process, through the same steps as the HTTP server's."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping

from edgectl.answer import Answer, Finished
from edgectl.choice_text import Piece
from edgectl.client import Delta
from edgectl.failures import ExitCode
from edgectl.model_source import describe_model, locate_model
from edgectl.openai_api import Ask, read_chat, read_completion
from edgectl.openai_errors import ApiError
from edgectl.openai_requests import ChatBody, CompletionBody, parse_body
from edgectl.openai_responses import usage_of
from edgectl.output import CommandFailure, progress_bar
from edgectl.planning import ServingOptions
from edgectl.solo import SoloEngine, load_solo
from edgectl.tokenizer import Tokenizer, load_tokenizer


class _Unobserved:
    """Nobody measures a session at a terminal."""

    def session_opened(self) -> None:
        """Nothing to do."""

    def token(self, since_start_s: float, since_last_s: float | None) -> None:
        """Nothing to do."""

    def session_ended(self, outcome: str) -> None:
        """Nothing to do."""


async def answer_here(
    model: str, options: ServingOptions, body: Mapping[str, object], *, chat: bool, show: Callable[[Delta], None]
) -> None:
    """Loads the model, answers, and gives its memory back. Raises CommandFailure, AgentError, PlannerError."""
    located = locate_model(model)
    with progress_bar("reading") as read:
        served = describe_model(located, read)
    tokenizer = load_tokenizer(located.directory, served.spec.vocab_size)
    try:
        with progress_bar("loading layers") as loaded:
            engine = load_solo(located, served, options, loaded)
    except ValueError as problem:  # options that contradict the model or this machine's provider
        raise CommandFailure(ExitCode.USAGE, str(problem)) from problem
    try:
        await _answer(engine, tokenizer, _read(engine, tokenizer, body, chat=chat), show)
    except ApiError as problem:
        raise CommandFailure.of(problem.code, str(problem)) from problem
    finally:
        engine.close()


def _read(engine: SoloEngine, tokenizer: Tokenizer, body: Mapping[str, object], *, chat: bool) -> Ask:
    """The same checks, and the same defaults, as over HTTP."""
    given = {**{key: value for key, value in body.items() if value is not None}, "model": engine.model}
    data = json.dumps(given).encode()
    if chat:
        return read_chat(parse_body(data, ChatBody), tokenizer, engine.context, _draw_seed)
    return read_completion(parse_body(data, CompletionBody), tokenizer, engine.context, _draw_seed)


async def _answer(engine: SoloEngine, tokenizer: Tokenizer, ask: Ask, show: Callable[[Delta], None]) -> None:
    answer = Answer(engine, tokenizer, ask, _Unobserved(), time.monotonic)
    answer.start()
    try:
        while (event := await answer.next()) is not None:
            if isinstance(event, Piece):
                show(Delta(event.text, tuple(shown.token for shown in event.tokens)))
            elif isinstance(event, Finished):
                show(Delta("", (), event.reason, usage_of(ask.prompt_tokens, event.tokens)))
    finally:
        await answer.close()


def _draw_seed() -> int:
    return secrets.randbits(63)
