"""Which slice goes next, how long it is, who waits for it, and when a move is given up."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.handover import MOVE_LATE_S, Handover, MoveLate, Slice, SplitBusy, Terms, UnknownSplit
from agent.sessions import Session, SessionState
from agent.slice_size import FIRST_SLICE_BYTES, LEAST_SLICE_BYTES, MOST_SLICE_BYTES
from agent.wire.codec import MAX_HIDDEN_SIZE, CodecId, FrameKind, RowRef
from agent.wire.messages import SplitKept, SplitMoved
from planner.types import LayerRange
from tests.fakes.ring import session

KV = 16
TOKEN_BYTES = 4 * KV
"""Of one layer."""


def handover(*, rows: int = 4, split: int = 4, points: tuple[int, ...] = (2, 6, 8), kv: int = KV) -> Handover:
    return Handover(Terms(7, rows, split, points, kv, CodecId.FP32))


def running(
    one: Handover, *positions: int, split: int = 4, state: SessionState = SessionState.WAITING, first: int = 0
) -> list[Session]:
    """Sessions that have come so far, each on the row of its number."""
    sessions = []
    for row, position in enumerate(positions, start=first):
        each = Session(session(f"s{row}", range(9)), row, 3, state=state, position=position, split=split)
        one.opened(row)
        one.ran(each)
        sessions.append(each)
    return sessions


def copy(one: Handover, sessions: list[Session], now: float = 1.0) -> Slice:
    taken = one.take(sessions)
    one.timed(0.001)
    one.arrived(sessions, now)
    return taken


def test_what_the_source_will_run_is_taken_and_what_it_will_not_is_given() -> None:
    for target, kind, layers in ((6, FrameKind.TAKE, (4, 6)), (2, FrameKind.GIVE, (2, 4))):
        one = handover()
        sessions = running(one, 5)
        assert one.wanted_since_s(sessions) is None
        one.begin(target, sessions, 3.0)
        assert one.wanted_since_s(sessions) == 3.0
        taken = one.take(sessions)
        assert (taken.kind, (taken.layers.start, taken.layers.stop)) == (kind, layers)
        assert (taken.rows, taken.tokens, taken.elements) == ((RowRef(0, 3, 0),), 5, 2 * KV)
        assert taken.bytes == 5 * 2 * TOKEN_BYTES
        assert one.wanted_since_s(sessions) is None, "one at a time"
        assert one.next_split(sessions[0], sessions) == 4
        one.arrived(sessions, 4.0)
        assert one.next_split(sessions[0], sessions) == target
        assert one.finished(sessions, 5.0) is None
        sessions[0].split = target
        assert one.finished(sessions, 5.0) == SplitMoved(7, target, taken.bytes, 2.0)
        assert one.finished(sessions, 6.0) is None, "said once"


def test_rows_that_decode_change_together_and_prompts_one_by_one() -> None:
    one = handover()
    decoding = running(one, 3, 3)
    prompts = running(one, 6, 6, state=SessionState.PREFILL, first=2)
    everybody = decoding + prompts
    one.begin(6, everybody, 0.0)
    assert [ref.row for ref in copy(one, everybody).rows] == [0, 1], "who decodes goes first"
    assert [one.next_split(each, everybody) for each in everybody] == [6, 6, 4, 4]
    decoding[0].position = 4
    assert [one.next_split(each, everybody) for each in everybody] == [4, 4, 4, 4]
    assert copy(one, everybody).rows == (RowRef(0, 3, 3),)
    assert [ref.row for ref in copy(one, everybody).rows] == [2, 3]
    assert [one.next_split(each, everybody) for each in everybody] == [6, 6, 6, 6]


def test_who_lacks_most_is_copied_first_and_all_together_in_the_end() -> None:
    one = handover()
    sessions = running(one, 200, 100, 4)
    one.begin(6, sessions, 0.0)
    rows = []
    while one.wanted_since_s(sessions) is not None:
        taken = copy(one, sessions)
        assert taken.bytes <= MOST_SLICE_BYTES
        rows.append([ref.row for ref in taken.rows])
        for each in sessions:
            if len(rows) <= 8:
                each.position += 1
    assert rows[0] == [0]
    assert rows[-1] == [0, 1, 2]
    assert len(rows) < 12


def test_more_of_a_row_than_is_missing_is_harmless_and_less_than_nothing_is_not_asked_for() -> None:
    one = handover()
    sessions = running(one, 2, 9)
    one.begin(6, sessions, 0.0)
    # Nine tokens of each would begin before the first row does.
    assert one.take(sessions).rows == (RowRef(1, 3, 0),)


def test_a_token_waits_for_the_last_tokens_and_for_no_more() -> None:
    one = handover()
    sessions = running(one, 20, state=SessionState.READY)
    one.begin(6, sessions, 0.0)
    assert not one.waits(sessions[0], sessions), "nothing is known of the link"
    copy(one, sessions)
    assert not one.waits(sessions[0], sessions), "nothing is missing"
    sessions[0].position = 21
    assert one.waits(sessions[0], sessions)
    sessions[0].position = 22
    assert one.waits(sessions[0], sessions), "they fit one slice"
    sessions[0].position = 2000
    assert not one.waits(sessions[0], sessions)
    one.give_up(MoveLate("late"))
    sessions[0].position = 2001
    assert not one.waits(sessions[0], sessions)


@given(st.lists(st.floats(0.0, 2.0), max_size=40), st.integers(100, 5000))
@example([0.0, 0.015625, 0.0, 0.0], 100)
def test_slices_stay_within_their_bounds(wires_s: list[float], position: int) -> None:
    one = handover()
    sessions = running(one, position)
    one.begin(6, sessions, 0.0)
    before = FIRST_SLICE_BYTES
    for wire_s in wires_s:
        sessions[0].position += 300
        taken = one.take(sessions)
        # A slice has whole tokens, so it may have been almost one token below what was allowed.
        token = taken.bytes // taken.tokens
        assert taken.bytes <= min(MOST_SLICE_BYTES, 2 * (before + token))
        before = max(taken.bytes, LEAST_SLICE_BYTES) if taken.bytes > before / 2 else before
        one.timed(wire_s)
        one.arrived(sessions, 0.0)


def test_layers_that_are_too_wide_for_a_frame_go_in_several() -> None:
    kv = MAX_HIDDEN_SIZE // 3
    one = handover(kv=kv, points=(4, 9))
    sessions = running(one, 2, 2)
    one.begin(9, sessions, 0.0)
    pieces = []
    while one.wanted_since_s(sessions) is not None:
        taken = copy(one, sessions)
        assert taken.elements <= MAX_HIDDEN_SIZE
        pieces += [(taken.layers, ref.row, ref.position + i) for ref in taken.rows for i in range(taken.tokens)]
    assert {layers for layers, _, _ in pieces} == {LayerRange(4, 7), LayerRange(7, 9)}
    assert len(set(pieces)) == 8
    assert one.next_split(sessions[0], sessions) == 9


def test_a_row_with_another_session_gets_nothing_of_the_one_before() -> None:
    one = handover()
    sessions = running(one, 5, 5)
    one.begin(6, sessions, 0.0)
    one.take(sessions)
    (later,) = running(one, 5)
    later.generation = 4
    now = [later, sessions[1]]
    one.arrived(now, 1.0)
    taken = one.take(now)
    assert (taken.rows, taken.tokens) == ((RowRef(0, 4, 0),), 5)


def test_what_begins_is_cut_where_all_will_be() -> None:
    one = handover()
    sessions = running(one, 5)
    fresh = Session(session("new", [1]), 1, 1)
    assert one.next_split(fresh, [*sessions, fresh]) == 4
    one.begin(8, sessions, 0.0)
    assert one.next_split(fresh, [*sessions, fresh]) == 8
    assert one.give_up(MoveLate("too late")) == SplitKept(7, 8, "move_late", "too late")
    assert one.next_split(fresh, [*sessions, fresh]) == 4
    assert one.split == 4


def test_there_are_two_splits_at_most() -> None:
    one = handover()
    sessions = running(one, 5)
    with pytest.raises(UnknownSplit, match="cannot be cut at layer 5, only at 2, 4, 6, 8"):
        one.begin(5, sessions, 0.0)
    assert not one.is_moving
    one.begin(6, sessions, 0.0)
    with pytest.raises(SplitBusy, match="cut at 4 and 6 now"):
        one.begin(8, sessions, 0.0)
    one.begin(4, sessions, 0.0)
    assert one.finished(sessions, 1.0) == SplitMoved(7, 4, 0, 1.0)
    sessions[0].split = 6  # A row that stayed where it was cut when a move was given up.
    with pytest.raises(SplitBusy, match="cut at 4 and 6 now"):
        one.begin(8, sessions, 0.0)
    sessions[0].position = 7
    one.ran(sessions[0])
    one.begin(4, sessions, 0.0)
    taken = one.take(sessions)
    assert (taken.kind, taken.rows, taken.tokens) == (FrameKind.GIVE, (RowRef(0, 3, 5),), 2)


def test_a_move_that_comes_no_closer_is_given_up() -> None:
    one = handover()
    sessions = running(one, 100)
    one.begin(6, sessions, 0.0)
    now = 0.0
    for _ in range(20):
        now += 10.0
        taken = one.take(sessions)
        one.arrived(sessions, now)
        sessions[0].position += taken.tokens - 1
        one.check_late(sessions, now)
    one.take(sessions)
    sessions[0].position += 1
    now += MOVE_LATE_S
    one.check_late(sessions, now)
    with pytest.raises(MoveLate, match="bytes of keys and values were still missing after 215 s"):
        one.check_late(sessions, now + 0.1)


def test_a_prompt_that_is_not_through_yet_is_no_reason_to_give_up() -> None:
    one = handover()
    sessions = running(one, 100, state=SessionState.PREFILL)
    one.begin(6, sessions, 0.0)
    for now in range(0, 100, 10):
        one.check_late(sessions, float(now))
        sessions[0].position += 100


def test_who_cannot_do_its_part_ends_the_move_once() -> None:
    one = handover()
    sessions = running(one, 100)
    one.begin(6, sessions, 0.0)
    one.take(sessions)
    assert one.refused("b: fp16") == SplitKept(7, 6, "peer_refused", "b: fp16")
    assert one.wanted_since_s(sessions) is None
    one.begin(6, sessions, 0.0)
    one.take(sessions)
    one.give_up(MoveLate("late"))
    assert one.refused("b: fp16") is None
