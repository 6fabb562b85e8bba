"""What the coordinator is told of moves that cannot begin or end otherwise; tests/rings and tests/golden have more."""

from __future__ import annotations

import pytest

from agent import moves
from agent.effects import Emit, Outcome
from agent.errors import AnswerTimeout
from agent.handover import MOVE_LATE_S
from agent.micro_batch import MicroBatch
from agent.place import ModelShape, place_of
from agent.wire.addresses import StageAddress
from agent.wire.messages import OpenMicroBatch, SessionMoved, SplitKept, SplitMoved
from planner.types import LayerRange
from tests.fakes.ring import session

SHAPE = ModelShape(6, 8, 4, 32, (LayerRange(0, 6),), kv_elements=16)
ROUTE = (StageAddress("a", "tcp://a:1", "k", 0, 2), StageAddress("b", "tcp://b:1", "k", 2, 6))


def micro_batch(*points: int, device: str = "a") -> MicroBatch:
    opened = OpenMicroBatch(1, 1, 2, 4, "fp16", ROUTE, split_points=points)
    return MicroBatch(opened, place_of(device, opened, SHAPE), SHAPE, 0)


def moving() -> MicroBatch:
    """One session has run four tokens, and the split is to go from 2 to 3."""
    one = micro_batch(1, 3)
    assert one.loop is not None
    one.loop.open(session("s0", range(6)))
    prompt = one.loop.next_prompt()
    assert prompt is not None
    one.loop.take_chunk(prompt, 0.0, 0.0, 4)
    assert one.loop.news(0.5) == [SessionMoved("s0", 0, 2)]
    assert moves.begin("a", one, 1, 3, 1.0) == []
    return one


@pytest.mark.parametrize("one", [None, micro_batch(), micro_batch(1, 3, device="b")])
def test_what_has_no_split_point_here_says_so(one: MicroBatch | None) -> None:
    (told,) = moves.begin("a", one, 1, 3, 0.0)
    assert isinstance(told, Emit)
    assert isinstance(told.message, SplitKept)
    assert (told.message.code, told.message.split) == ("unknown_micro_batch", 3)


def test_a_broken_micro_batch_does_not_move() -> None:
    one = micro_batch(1, 3)
    one.broken = "b: out of memory"
    (told,) = moves.begin("a", one, 1, 3, 0.0)
    assert "broken: b: out of memory" in str(told)


def test_without_sessions_it_has_moved_at_once() -> None:
    assert moves.begin("a", micro_batch(1, 3), 1, 3, 0.0) == [Emit(SplitMoved(1, 3, 0, 0.0))]


def test_a_move_that_is_given_up_is_told_of_once() -> None:
    one = moving()
    assert moves.give_up(one, AnswerTimeout("late")) == [Emit(SplitKept(1, 3, "answer_timeout", "late"))]
    assert moves.give_up(one, AnswerTimeout("late")) == []
    assert moves.on_time(one, 1e6) == []
    assert moves.give_up(micro_batch(device="b"), AnswerTimeout("late")) == []


def test_what_cannot_be_written_here_ends_the_move() -> None:
    one = moving()
    assert one.loop is not None
    one.loop.take_slice(1.0)
    told = moves.written("a", one, Outcome(refused="full"), 2.0)
    assert told == [Emit(SplitKept(1, 3, "peer_refused", "a: full"))]


def test_a_session_that_has_ended_lets_the_move_end() -> None:
    one = moving()
    assert one.loop is not None
    assert moves.on_time(one, 1.0 + 2 * MOVE_LATE_S) == [], "its prompt is still being sent"
    (running,) = one.loop.running()
    running.end("cancelled")
    one.loop.retire(running)
    assert moves.on_time(one, 41.0)[-1] == Emit(SplitMoved(1, 3, 0, 40.0))
