"""The source's order of frames: what is in flight, what an answer frees, when one is late."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import AgentError, AnswerTimeout
from agent.sessions import MAX_PATIENCE_S
from agent.token_loop import (
    ANSWER_LATE_S,
    CHUNKS_IN_FLIGHT,
    ENDED_EVENTS_KEPT,
    ENDED_SESSIONS_KEPT,
    FIRST_ANSWER_S,
    STALLED_ROUNDS,
    STALLED_S,
    NextFrame,
    NoFreeRow,
    TokenLoop,
    UnderWay,
)
from agent.wire.codec import Answered, FrameKind
from agent.wire.hop import MAX_KEPT_FRAMES
from agent.wire.messages import SessionEnded, TokenEvent
from tests.fakes.ring import session

CONTEXT = 64
VOCABULARY = 97


def loop_with(*prompts: int, rows: int = 4, chunk: int = 4, max_tokens: int = 3) -> TokenLoop:
    loop = TokenLoop(rows, chunk, CONTEXT, VOCABULARY)
    for index, prompt in enumerate(prompts):
        loop.open(session(f"s{index}", range(prompt), max_tokens))
    return loop


def next_frame(loop: TokenLoop, now: float = 0.0, *, chunk_first: bool = True, most: int = 64) -> NextFrame | None:
    """Take what may go; `schedule` decides in earnest."""
    may_decode = loop.ready_since_s() is not None
    prompt = loop.next_prompt()
    if prompt is not None and (chunk_first or not may_decode):
        return loop.take_chunk(prompt, now, now, most)
    return loop.take_decode(now, now) if may_decode else None


def answer(loop: TokenLoop, step: int, now: float = 0.0) -> list[object]:
    return list(loop.answer(step, (Answered(1),) * loop.rows_in_flight(step), now))


# --- rows ---


def test_a_session_takes_the_lowest_free_row_and_raises_its_generation() -> None:
    loop = loop_with(2, 2, 2, rows=3)
    first = loop.session("s0")
    assert first is not None
    first.end("cancelled")
    loop.retire(first)
    again = loop.open(session("s3", range(2)))
    assert (again.row, again.generation) == (0, 2)
    with pytest.raises(NoFreeRow, match="all 3 rows"):
        loop.open(session("s4", range(2)))


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "fits"),
    [(CONTEXT - 1, 1, True), (CONTEXT, 1, False), (0, 1, False), (1, 0, False), (1, -1, False), (1, 10**9, True)],
)
def test_what_does_not_fit_is_refused(prompt: int, max_tokens: int, fits: bool) -> None:
    loop = TokenLoop(1, 4, CONTEXT, VOCABULARY)
    if fits:
        loop.open(session("s", range(prompt), max_tokens))
        return
    with pytest.raises(AgentError, match="session s"):
        loop.open(session("s", range(prompt), max_tokens))
    assert loop.running() == []


def test_a_name_is_taken_while_its_events_are_kept() -> None:
    loop = TokenLoop(1, 4, CONTEXT, VOCABULARY)
    for number in range(ENDED_SESSIONS_KEPT + 1):
        one = loop.open(session(f"s{number}", range(2)))
        with pytest.raises(AgentError, match="open already"):
            loop.open(session(f"s{number}", range(2)))
        one.end("cancelled")
        loop.retire(one)
    assert loop.session("s0") is None
    assert loop.session("s1") is not None
    loop.open(session("s0", range(2)))


def test_events_of_long_sessions_are_kept_for_fewer_of_them() -> None:
    loop = TokenLoop(1, 4, CONTEXT, VOCABULARY)
    length = ENDED_EVENTS_KEPT // 3
    for number in range(9):
        one = loop.open(session(f"s{number}", range(2)))
        one.events += [TokenEvent(f"s{number}", index, 1) for index in range(length)]
        one.end("cancelled")
        loop.retire(one)
        assert loop.session(f"s{number}") is one
    assert [number for number in range(9) if loop.session(f"s{number}") is not None] == [7, 8]
    one = loop.open(session("longest", range(2)))
    one.events += [TokenEvent("longest", index, 1) for index in range(4 * length)]
    one.end("cancelled")
    loop.retire(one)
    assert loop.session("longest") is one
    assert loop.session("s8") is None


# --- frames ---


def test_two_chunks_and_one_decode_frame_are_in_flight_at_most() -> None:
    loop = loop_with(2, 12)
    kinds = []
    while (frame := next_frame(loop)) is not None:
        kinds.append(frame.kind)
    assert kinds == [FrameKind.PREFILL] * CHUNKS_IN_FLIGHT
    answer(loop, 0)  # s0 is ready now, and a chunk of s1 may go
    kinds = [frame.kind for _ in range(2) if (frame := next_frame(loop))]
    assert sorted(kinds) == [FrameKind.PREFILL, FrameKind.DECODE]
    assert next_frame(loop) is None


@given(
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    chunk=st.integers(3, 8),
    choices=st.lists(st.booleans(), max_size=60),
    order=st.lists(st.tuples(st.booleans(), st.integers(3, 9)), min_size=1, max_size=9),
)
def test_whatever_the_order_every_step_is_answered_and_every_session_ends(
    prompts: list[int], chunk: int, choices: list[bool], order: list[tuple[bool, int]]
) -> None:
    loop = loop_with(*prompts, chunk=chunk, max_tokens=4)
    flying: list[tuple[int, FrameKind]] = []
    events: list[object] = []
    choices = list(choices)
    while True:
        wants_answer = choices.pop(0) if choices else False
        chunk_first, most = order[loop.answered % len(order)]
        frame = None if wants_answer and flying else next_frame(loop, chunk_first=chunk_first, most=most)
        if frame is not None:
            assert frame.step == (flying[-1][0] + 1 if flying else loop.answered + 1)
            assert len({len(row) for row in frame.tokens}) == 1
            flying.append((frame.step, frame.kind))
            counts = Counter(kind for _, kind in flying)
            assert counts[FrameKind.PREFILL] <= CHUNKS_IN_FLIGHT
            assert counts[FrameKind.DECODE] <= 1
            assert len(flying) <= MAX_KEPT_FRAMES
        elif flying:
            step, _ = flying.pop(0)
            events += answer(loop, step)
            assert loop.answered == step
        else:
            break
    assert loop.running() == []
    for index in range(len(prompts)):
        own = [event for event in events if getattr(event, "session", "") == f"s{index}"]
        assert [e.index for e in own if isinstance(e, TokenEvent)] == [0, 1, 2, 3]
        assert own[-1] == SessionEnded(f"s{index}", "length", 4)


def test_a_decode_frame_carries_every_row_that_is_ready() -> None:
    loop = loop_with(2, 3, 2)
    first, second = next_frame(loop), next_frame(loop)
    assert first is not None
    assert second is not None
    answer(loop, first.step)
    third = next_frame(loop)
    assert third is not None
    while next_frame(loop) is not None:
        pass
    answer(loop, second.step)
    answer(loop, third.step)
    answer(loop, 3)
    decode = next_frame(loop)
    assert decode is not None
    assert decode.kind is FrameKind.DECODE
    assert [ref.row for ref in decode.rows] == [0, 1, 2]
    assert [ref.position for ref in decode.rows] == [3, 3, 2]
    assert decode.sample


def test_rows_are_ready_from_their_answer_on_and_go_in_the_next_frame_that_is_taken() -> None:
    loop = loop_with(2, 2)
    assert loop.ready_since_s() is None
    first, second = next_frame(loop), next_frame(loop)
    assert first is not None
    assert second is not None
    answer(loop, first.step, 7.0)
    assert loop.ready_since_s() == 7.0
    answer(loop, second.step, 8.0)
    assert loop.ready_since_s() == 7.0
    decode = loop.take_decode(9.0, 7.0)
    assert [ref.row for ref in decode.rows] == [0, 1]
    assert loop.since_s(decode.step) == 7.0
    assert loop.ready_since_s() is None


def test_a_step_taken_while_one_is_under_way_is_a_bug() -> None:
    loop = loop_with(2)
    with pytest.raises(AssertionError):
        loop.take_decode(0.0, 0.0)
    next_frame(loop)
    loop = loop_with(20)
    while next_frame(loop, most=4) is not None:
        pass
    with pytest.raises(AssertionError):
        loop.take_chunk(loop.running()[0], 0.0, 0.0, 4)


def test_the_prompt_that_is_due_first_goes_first() -> None:
    loop = TokenLoop(4, 4, CONTEXT, VOCABULARY)
    for name, prompt, now, patience_s in (("long", 30, 0.0, 0.0), ("idle", 3, 1.0, 9.0), ("short", 3, 2.0, 0.0)):
        loop.open(session(name, range(prompt), patience_s=patience_s), now)
    order = []
    while (waiting := loop.next_prompt(0.1)) is not None:
        order.append(waiting.opened.session)
        frame = loop.take_chunk(waiting, 3.0, 3.0, 4)
        answer(loop, frame.step)
    assert order == ["short", *["long"] * 8, "idle"], "due after 2.3, 3.0 and 10.3 s"


@pytest.mark.parametrize("patience_s", [-1.0, float("nan"), float("inf"), MAX_PATIENCE_S * 2])
def test_a_patience_that_is_none_is_refused(patience_s: float) -> None:
    loop = TokenLoop(1, 4, CONTEXT, VOCABULARY)
    with pytest.raises(AgentError, match="patience"):
        loop.open(session("s", range(2), patience_s=patience_s))
    assert loop.running() == []


def test_a_decode_frame_that_stands_still_wants_nothing() -> None:
    loop = loop_with(2, max_tokens=9)
    assert not loop.wants_to_decode(0.0)
    next_frame(loop)
    assert not loop.wants_to_decode(0.0), "no row has a token yet"
    answer(loop, 0)
    assert loop.wants_to_decode(0.0)
    next_frame(loop)
    assert loop.wants_to_decode(STALLED_S)
    assert not loop.wants_to_decode(STALLED_S + 0.1)
    answer(loop, 1, 4.0)
    assert loop.wants_to_decode(4.0)
    next_frame(loop, 4.0)
    assert loop.wants_to_decode(4.0 + 4.0 * STALLED_ROUNDS)
    assert not loop.wants_to_decode(4.1 + 4.0 * STALLED_ROUNDS)


def test_a_cancelled_sessions_answer_finds_nobody() -> None:
    loop = loop_with(2, rows=1)
    frame = next_frame(loop)
    assert frame is not None
    one = loop.running()[0]
    one.end("cancelled")
    loop.retire(one)
    late = loop.open(session("s1", range(2)))
    assert answer(loop, frame.step) == []
    assert late.tokens == []


def test_a_step_that_is_not_in_flight_has_no_answer() -> None:
    loop = loop_with(2)
    with pytest.raises(KeyError):
        loop.answer(0, (), 0.0)


# --- time ---


def test_an_answer_is_late_ten_seconds_after_twice_its_expected_time() -> None:
    loop = loop_with(2, max_tokens=9)
    next_frame(loop, 100.0)
    loop.expire(100.0 + FIRST_ANSWER_S + ANSWER_LATE_S)
    with pytest.raises(AnswerTimeout, match=r"step 0 \(prefill\) is 10\.1 s late"):
        loop.expire(100.0 + FIRST_ANSWER_S + ANSWER_LATE_S + 0.1)
    answer(loop, 0, 104.0)  # two tokens in four seconds
    next_frame(loop, 200.0)
    loop.expire(200.0 + 2 * 2.0 + ANSWER_LATE_S)
    with pytest.raises(AnswerTimeout, match=r"step 1 \(decode\)"):
        loop.expire(200.0 + 2 * 2.0 + ANSWER_LATE_S + 0.1)


def test_nothing_in_flight_is_never_late() -> None:
    loop = loop_with(2, max_tokens=1)
    loop.expire(1e9)
    next_frame(loop)
    answer(loop, 0)
    loop.expire(1e9)


def test_who_stands_in_line_is_not_late() -> None:
    """The clock of a frame starts anew with each answer to what went before it, and never for what came later."""
    loop = loop_with(2, max_tokens=9)
    next_frame(loop)
    answer(loop, 0, 1.0)  # two tokens in one second: a decode step is expected in one as well
    next_frame(loop, 2.0)
    loop.has_heard(1.9, 20.0)
    loop.has_heard(2.1, 25.0)
    loop.expire(20.0 + 1.0 + ANSWER_LATE_S)
    with pytest.raises(AnswerTimeout, match=r"is 10\.1 s late"):
        loop.expire(20.1 + 1.0 + ANSWER_LATE_S)


def test_no_frame_is_late_before_those_that_went_before_it() -> None:
    loop = loop_with(2)
    next_frame(loop)
    answer(loop, 0, 0.1)
    next_frame(loop, 5.0)
    late_s = 1e3
    loop.expire(late_s, [UnderWay(4.0, 2e3)])
    with pytest.raises(AnswerTimeout):
        loop.expire(late_s, [UnderWay(4.0, 999.0), UnderWay(6.0, 2e3)])


def test_a_stalled_decode_step_does_not_stretch_what_chunks_may_take() -> None:
    loop = loop_with(2, 60, chunk=30, max_tokens=9, rows=3)
    for step in range(3):
        next_frame(loop, float(step))
        answer(loop, step, step + 0.3)
    assert next_frame(loop, 10.0, chunk_first=False) is not None
    answer(loop, 3, 15.0)
    assert loop.under_way() == []
    loop.take_decode(20.0, 20.0)
    assert loop.under_way() == [UnderWay(20.0, 20.0 + ANSWER_LATE_S + 10.0)]
    answer(loop, 4, 20.1)
    loop.open(session("new", range(40)), 21.0)
    next_frame(loop, 21.0)
    assert loop.under_way()[0].late_s == pytest.approx(21.0 + ANSWER_LATE_S + 2 * 0.15 * 30)
