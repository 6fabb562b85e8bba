from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from agent.wire.messages import Sampling
from edgectl.answer import SESSIONS_AT_ONCE, Answer, AnswerEvent, Finished, Opened, Owner
from edgectl.choice_text import Piece
from edgectl.engine import Claim, EngineError
from edgectl.openai_api import Ask, Choice
from edgectl.openai_errors import ApiError
from tests.fakes.fake_engine import FakeEngine, FakeGeneration, Opening, Script
from tests.fakes.http_server import bundled_tokenizer


class Seen:
    """Observer that remembers."""

    def __init__(self) -> None:
        self.open = 0
        self.most_open = 0
        self.outcomes: list[str] = []
        self.tokens: list[tuple[float, float | None]] = []

    def session_opened(self) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)

    def token(self, since_start_s: float, since_last_s: float | None) -> None:
        self.tokens.append((since_start_s, since_last_s))

    def session_ended(self, outcome: str) -> None:
        self.open -= 1
        self.outcomes.append(outcome)


def ask(choices: int = 1, max_tokens: int = 50, stop: tuple[str, ...] = (), echo: str = "") -> Ask:
    made = [
        Choice(index, (index,), max_tokens, Sampling(), stop, begins_text=True, echo=echo) for index in range(choices)
    ]
    return Ask(tuple(made), choices, False, False, False)


def words(text: str) -> list[int]:
    return bundled_tokenizer().encode(text)


def make(engine: FakeEngine, question: Ask) -> tuple[Answer, Seen]:
    seen = Seen()
    ticks = count()
    answer = Answer(engine, bundled_tokenizer(), question, seen, lambda: float(next(ticks)))
    answer.start()
    return answer, seen


async def drain(answer: Answer) -> list[AnswerEvent]:
    events = []
    while (event := await answer.next()) is not None:
        events.append(event)
    return events


def test_a_choice_is_opened_told_and_finished() -> None:
    async def scenario() -> None:
        tokens = words("hello there")
        answer, seen = make(FakeEngine(lambda _: Script([*tokens, 1])), ask(echo="Q"))
        events = await drain(answer)
        await answer.close()
        assert events[:2] == [Opened(0), Piece(0, "Q")]
        assert "".join(event.text for event in events if isinstance(event, Piece)) == "Qhello there"
        assert events[-1] == Finished(0, "stop", len(tokens))
        assert seen.outcomes == ["stop"]
        assert seen.tokens[0] == (1.0, None)
        assert seen.tokens[1:] == [(float(n + 2), 1.0) for n in range(len(tokens) - 1)]

    asyncio.run(scenario())


def test_a_stop_string_cancels_the_session_and_counts_no_token_past_it() -> None:
    async def scenario() -> None:
        tokens = words("one. two. three.")
        engine = FakeEngine(lambda _: Script(tokens, hold_after=len(tokens) - 1))
        answer, seen = make(engine, ask(stop=(" two",)))
        events = await drain(answer)
        await answer.close()
        assert "".join(event.text for event in events if isinstance(event, Piece)) == "one."
        assert events[-1] == Finished(0, "stop", len(words("one. two")))
        assert engine.generations[0].cancelled.is_set()
        assert seen.outcomes == ["stop"]

    asyncio.run(scenario())


def test_choices_are_interleaved_and_at_most_some_run_at_once() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda opening: Script(words("ab " * (1 + opening.prompt[0] % 3))))
        answer, seen = make(engine, ask(choices=3 * SESSIONS_AT_ONCE))
        events = await drain(answer)
        await answer.close()
        for index in range(3 * SESSIONS_AT_ONCE):
            own = [event for event in events if event.index == index]
            assert isinstance(own[0], Opened)
            assert isinstance(own[-1], Finished)
            text = "".join(event.text for event in own if isinstance(event, Piece))
            assert text == "ab " * (1 + index % 3)
        assert seen.most_open == SESSIONS_AT_ONCE
        order = [event.index for event in events if isinstance(event, Piece)]
        assert order != sorted(order)

    asyncio.run(scenario())


def test_one_failure_ends_the_answer_and_closing_cancels_the_others() -> None:
    async def scenario() -> None:
        def script(opening: Opening) -> Script:
            if opening.prompt[0] == 2:
                return Script(words("abc def"), fail_after=1)
            return Script(words("abc def"), hold_after=1)

        engine = FakeEngine(script)
        answer, seen = make(engine, ask(choices=4))
        with pytest.raises(ApiError) as caught:
            await drain(answer)
        await answer.close()
        assert caught.value.code == "device_lost"
        assert seen.open == 0
        assert sorted(seen.outcomes) == ["cancelled"] * 3 + ["failed"]
        assert all(generation.cancelled.is_set() for generation in engine.generations)

    asyncio.run(scenario())


def test_closing_cancels_sessions_that_wait_for_their_place() -> None:
    async def scenario() -> None:
        class Full(FakeEngine):
            async def open(self, *_: object) -> FakeGeneration:
                self.changed.set()
                await asyncio.Event().wait()
                raise AssertionError

        engine = Full(lambda _: Script())
        answer, seen = make(engine, ask(choices=2))
        await engine.changed.wait()
        await answer.close()
        await answer.close()
        assert seen.outcomes == []

    asyncio.run(scenario())


def test_a_refused_opening_is_the_answers_error() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script(), refuse=EngineError("queue_full", "64 wait", retry_after_s=3))
        answer, _ = make(engine, ask())
        with pytest.raises(ApiError) as caught:
            await answer.next()
        await answer.close()
        assert (caught.value.http_status, caught.value.headers()) == (429, {"Retry-After": "3"})

    asyncio.run(scenario())


def test_a_session_that_somebody_else_cancelled_is_no_answer() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script(words("abc def"), hold_after=1))
        answer, seen = make(engine, ask())
        assert isinstance(await answer.next(), Opened)
        assert isinstance(await answer.next(), Piece)
        engine.generations[0].cancel()
        with pytest.raises(ApiError) as caught:
            await answer.next()
        await answer.close()
        assert caught.value.code == "cancelled"
        assert seen.outcomes == ["failed"]

    asyncio.run(scenario())


def test_a_bug_in_the_engine_becomes_an_internal_error() -> None:
    async def scenario() -> None:
        def broken(_: Opening) -> Script:
            raise ZeroDivisionError("/home/someone/secret.py")

        answer, _ = make(FakeEngine(broken), ask())
        with pytest.raises(ApiError) as caught:
            await answer.next()
        await answer.close()
        assert caught.value.code == "internal_error"
        assert "secret" not in str(caught.value.body())

    asyncio.run(scenario())


def test_silence_is_reported_and_nothing_is_lost_by_it() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script(words("ab"), hold_after=0))
        answer, _ = make(engine, ask())
        assert isinstance(await answer.next(1.0), Opened)
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await answer.next(0.001)
        engine.release.set()
        events = await drain(answer)
        await answer.close()
        assert "".join(event.text for event in events if isinstance(event, Piece)) == "ab"

    asyncio.run(scenario())


def test_a_request_has_no_more_sessions_open_than_its_key_may() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script([*words("hello"), 1], hold_after=1))
        owner = Owner("0a1b", at_once=2)
        answer = Answer(engine, bundled_tokenizer(), ask(choices=5), Seen(), lambda: 0.0, owner=owner)
        answer.start()
        await engine.until(lambda: len(engine.openings) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(engine.openings) == 2
        engine.release.set()
        await drain(answer)
        await answer.close()
        assert len(engine.openings) == 5
        assert {opening.claim for opening in engine.openings} == {Claim("0a1b", 0)}

    asyncio.run(scenario())


class CrowdedEngine(FakeEngine):
    """Has so many places."""

    places = 0
    opening = 0
    refusals = 0

    async def open(self, *asked: Any) -> FakeGeneration:
        held = sum(one.reason is None and not one.cancelled.is_set() for one in self.generations)
        if held + self.opening >= self.places:
            self.refusals += 1
            raise EngineError("queue_full", "crowded")
        self.opening += 1
        try:
            return await super().open(*asked)
        finally:
            self.opening -= 1


def test_a_request_that_was_let_in_is_not_ended_for_its_own_size() -> None:
    async def scenario() -> None:
        engine = CrowdedEngine(lambda _: Script([*words("hello"), 1]))
        engine.places = 2
        answer = Answer(engine, bundled_tokenizer(), ask(choices=7), Seen(), lambda: 0.0, crowded_s=0.0)
        answer.start()
        events = await drain(answer)
        await answer.close()
        assert sorted(event.index for event in events if isinstance(event, Finished)) == list(range(7))
        assert engine.refusals

    asyncio.run(scenario())


def test_a_request_of_which_nothing_is_let_in_is_refused_whole() -> None:
    async def scenario() -> None:
        engine = CrowdedEngine(lambda _: Script([]))
        answer = Answer(engine, bundled_tokenizer(), ask(choices=3), Seen(), lambda: 0.0, crowded_s=0.0)
        answer.start()
        with pytest.raises(ApiError) as refused:
            await drain(answer)
        await answer.close()
        assert refused.value.code == "queue_full"
        assert engine.generations == []

    asyncio.run(scenario())


def test_a_request_that_waits_for_a_place_can_be_left() -> None:
    async def scenario() -> None:
        engine = CrowdedEngine(lambda _: Script(words("hello"), hold_after=1))
        engine.places = 1
        answer = Answer(engine, bundled_tokenizer(), ask(choices=3), Seen(), lambda: 0.0, crowded_s=0.0)
        answer.start()
        assert await answer.next() == Opened(0)
        await answer.close()
        assert len(engine.generations) == 1
        assert engine.generations[0].cancelled.is_set()

    asyncio.run(scenario())
