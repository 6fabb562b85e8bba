"""The answer to one HTTP request: its sessions run side by side, their events come out of one queue.

Whoever holds an Answer must close it: closing cancels every session that still runs, on every path out (the client
hung up, a choice failed, the server stops).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, Union

from edgectl.choice_text import ChoiceText, Piece
from edgectl.engine import Claim, Engine, EngineError, Generation
from edgectl.openai_api import Ask, Choice
from edgectl.openai_errors import ApiError
from edgectl.tokenizer import Tokenizer

LOG = logging.getLogger(__name__)

SESSIONS_AT_ONCE = 8
"""Of one HTTP request: a batch of many prompts does not fill the coordinator's queue for everybody else."""

CROWDED = frozenset({"queue_full", "too_many_sessions"})
"""Why one more session is not let in now. A request none of whose sessions was let in is refused with that; one that
is being answered is not ended for it, its other sessions come back until there is a place."""

CROWDED_S = 0.5
"""How long they wait before they come back: for a place of their own request's, a few tokens."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose request it is, and how many sessions it may have open at a time."""

    key: str = ""
    """Names an API key; empty where none is asked for."""
    at_once: int = SESSIONS_AT_ONCE


NOBODY = Owner()


@dataclass(frozen=True, slots=True)
class Opened:
    """A choice's session has its place; its first token may be far away."""

    index: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a choice."""

    index: int
    reason: FinishReason
    tokens: int


AnswerEvent = Union[Opened, Piece, Finished]


class Observer(Protocol):
    """What is measured about sessions; durations in seconds."""

    def session_opened(self) -> None: ...

    def token(self, since_start_s: float, since_last_s: float | None) -> None:
        """`since_last_s` is None for a session's first token."""
        ...

    def session_ended(self, outcome: str) -> None: ...


class Answer:
    """Runs the choices of an Ask; `start` once, then `next` until it returns None, then `close`."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        ask: Ask,
        observer: Observer,
        clock: Callable[[], float],
        *,
        owner: Owner = NOBODY,
        crowded_s: float = CROWDED_S,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._ask = ask
        self._observer = observer
        self._clock = clock
        self._started = clock()
        self._events: asyncio.Queue[AnswerEvent | ApiError] = asyncio.Queue()
        self._claim = Claim(owner.key, ask.priority)
        self._gate = asyncio.Semaphore(owner.at_once)
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished = len(ask.choices)
        self._crowded_s = crowded_s
        self._is_let_in = False
        self._first_asked = asyncio.Event()
        """The first choice has been let in, or refused: it decides for the request."""

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(choice)) for choice in self._ask.choices]

    async def next(self, timeout_s: float | None = None) -> AnswerEvent | None:
        """The next event, None after the last choice has finished.

        Raises ApiError when a choice fails, asyncio.TimeoutError when nothing happens for `timeout_s`.
        """
        if not self._unfinished:
            return None
        if self._events.empty():
            event = await asyncio.wait_for(self._events.get(), timeout_s)
        else:
            event = self._events.get_nowait()
        if isinstance(event, ApiError):
            raise event
        self._unfinished -= isinstance(event, Finished)
        return event

    async def close(self) -> None:
        """Cancels what still runs and waits until no task of this answer is left. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, choice: Choice) -> None:
        """One session from opening to its end; whatever goes wrong becomes an event."""
        try:
            async with self._gate:
                await self._session(choice)
        except EngineError as problem:
            LOG.warning("session failed: %s", problem, extra={"code": problem.code})
            self._events.put_nowait(ApiError.of_engine(problem))
        except Exception:
            LOG.exception("choice %d of an answer failed", choice.index)
            self._events.put_nowait(ApiError("internal_error"))

    async def _session(self, choice: Choice) -> None:
        generation = await self._open(choice)
        self._observer.session_opened()
        outcome = "cancelled"
        try:
            outcome = await self._follow(choice, generation)
        except Exception:
            outcome = "failed"
            raise
        finally:
            generation.cancel()
            self._observer.session_ended(outcome)

    async def _open(self, choice: Choice) -> Generation:
        """Raises EngineError; CROWDED only where no session of the request was let in yet."""
        stop_ids = () if choice.ignore_eos else self._tokenizer.stop_ids
        if choice is not self._ask.choices[0]:
            await self._first_asked.wait()
        while True:
            try:
                generation = await self._engine.open(
                    choice.prompt, choice.max_tokens, choice.sampling, stop_ids, self._claim
                )
            except EngineError as problem:
                if problem.code not in CROWDED or not self._is_let_in:
                    raise
                await asyncio.sleep(self._crowded_s)
            else:
                self._is_let_in = True
                return generation
            finally:
                self._first_asked.set()

    async def _follow(self, choice: Choice, generation: Generation) -> FinishReason:
        """Turns tokens into pieces until the choice ends; returns its finish reason."""
        put = self._events.put_nowait
        put(Opened(choice.index))
        if choice.echo:
            put(Piece(choice.index, choice.echo))
        text = ChoiceText(choice, self._tokenizer)
        last: float | None = None
        async for event in generation:
            now = self._clock()
            self._observer.token(now - self._started, None if last is None else now - last)
            last = now
            piece = text.push(event)
            if piece is not None:
                put(piece)
            if text.stopped:
                break
        reason = "stop" if text.stopped else generation.reason
        if reason is None or reason == "cancelled":
            raise EngineError("cancelled", f"session ended with reason {reason} though nobody here cancelled it")
        piece = text.finish()
        if piece is not None:
            put(piece)
        put(Finished(choice.index, reason, text.tokens))
        return reason
