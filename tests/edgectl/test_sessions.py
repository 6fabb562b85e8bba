"""Queue, rows, the log of tokens, gaps, cancellation; and as a property: every token once, in order, then one end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.messages import (
    CancelSession,
    OpenSession,
    ResumeEvents,
    Sampling,
    SessionEnded,
    SessionFailed,
    TokenEvent,
)
from edgectl.effects import Deliver, Effect, SendSource
from edgectl.engine import EngineError
from edgectl.sessions import CANCEL_PATIENCE_S, MAX_QUEUED_SESSIONS, RESUME_INTERVAL_S, SessionTable


def opening(session: str) -> OpenSession:
    return OpenSession(session, 0, (1, 2, 3), 8, Sampling(), (7,))


def started(*sessions: str, rows: int = 1) -> SessionTable:
    table = SessionTable(rows)
    for session in sessions:
        table.open(opening(session))
    table.start(5)
    return table


def delivered(effects: list[Effect]) -> list[object]:
    return [effect.event for effect in effects if isinstance(effect, Deliver)]


def test_sessions_start_in_order_of_arrival_as_rows_come_free() -> None:
    table = SessionTable(rows=2)
    for name in "abc":
        table.open(opening(name))
    sent = [effect.message for effect in table.start(9) if isinstance(effect, SendSource)]
    assert [(m.session, m.micro_batch, m.stop_ids) for m in sent if isinstance(m, OpenSession)] == [
        ("a", 9, (7,)),
        ("b", 9, (7,)),
    ]
    assert (table.running, table.queued) == (2, 1)
    assert table.start(9) == []
    table.on_ended(SessionEnded("b", "stop", 0), 0.0)
    assert [effect.message.session for effect in table.start(9) if isinstance(effect, SendSource)] == ["c"]


def test_the_queue_is_bounded() -> None:
    table = SessionTable()
    for number in range(MAX_QUEUED_SESSIONS):
        table.open(opening(str(number)))
    with pytest.raises(EngineError, match="queue_full"):
        table.open(opening("one more"))
    assert table.queued == MAX_QUEUED_SESSIONS


def test_a_gap_is_asked_for_once_an_interval_until_it_is_filled() -> None:
    table = started("a")
    first = TokenEvent("a", 0, 10)
    assert delivered(table.on_token(first, 0.0)) == [first]
    again = [SendSource(ResumeEvents("a", 1))]
    assert table.on_token(TokenEvent("a", 2, 12), 0.0) == again
    assert table.on_token(TokenEvent("a", 3, 13), 0.1) == []
    assert table.on_tick(0.2) == []
    assert table.on_tick(RESUME_INTERVAL_S) == again
    assert delivered(table.on_token(TokenEvent("a", 1, 11), 1.1)) == [TokenEvent("a", 1, 11)]
    assert table.on_tick(5.0) == []


def test_an_end_waits_for_the_tokens_before_it() -> None:
    table = started("a")
    end = SessionEnded("a", "length", 2)
    assert table.on_ended(end, 0.0) == [SendSource(ResumeEvents("a", 0))]
    table.on_token(TokenEvent("a", 0, 10), 0.1)
    table.on_token(TokenEvent("a", 1, 11), 0.1)
    assert delivered(table.on_ended(end, 0.1)) == [end]
    assert table.on_ended(end, 0.1) == []
    assert (table.counts.opened, table.counts.ended, table.counts.failed, table.counts.tokens) == (1, 1, 0, 2)


def test_a_failure_carries_its_code() -> None:
    table = started("a")
    (error,) = delivered(table.on_failed(SessionFailed("a", "answer_timeout", "hop a → b")))
    assert isinstance(error, EngineError)
    assert (error.code, error.detail) == ("answer_timeout", "hop a → b")
    assert table.on_failed(SessionFailed("a", "answer_timeout", "again")) == []


def test_cancelling_a_waiting_session_tells_no_device() -> None:
    table = started("a", "b")
    assert table.cancel("b", 0.0) == [Deliver("b", SessionEnded("b", "cancelled", 0))]
    assert table.queued == 0
    assert table.cancel("unknown", 0.0) == []


def test_a_cancelled_session_ends_at_once_and_keeps_its_row_until_confirmed() -> None:
    table = started("a", "b")
    table.on_token(TokenEvent("a", 0, 10), 0.0)
    assert table.cancel("a", 0.0) == [
        SendSource(CancelSession("a")),
        Deliver("a", SessionEnded("a", "cancelled", 1)),
    ]
    assert table.cancel("a", 0.0) == []
    assert delivered(table.on_token(TokenEvent("a", 1, 11), 0.1)) == []
    assert table.start(5) == []
    assert table.on_ended(SessionEnded("a", "cancelled", 4), 0.2) == []
    assert len(table.start(5)) == 1


def test_an_unconfirmed_cancellation_gives_its_row_up() -> None:
    table = started("a", "b")
    table.cancel("a", 0.0)
    table.on_tick(CANCEL_PATIENCE_S)
    assert table.start(5) == []
    table.on_tick(CANCEL_PATIENCE_S + 0.1)
    assert len(table.start(5)) == 1


def test_a_new_connection_of_the_source_is_asked_for_everything_since() -> None:
    table = started("a", "b", rows=2)
    table.on_token(TokenEvent("a", 0, 10), 0.0)
    table.cancel("b", 0.0)
    assert table.resume(1.0) == [SendSource(ResumeEvents("a", 1)), SendSource(CancelSession("b"))]


def test_a_broken_micro_batch_spares_those_that_wait_and_a_lost_route_does_not() -> None:
    table = started("a", "b", "c")
    assert [effect.session for effect in table.fail_running("frame_refused", "x") if isinstance(effect, Deliver)] == [
        "a"
    ]
    table.start(6)
    failed = table.fail_all("device_lost", "x")
    assert [effect.session for effect in failed if isinstance(effect, Deliver)] == ["b", "c"]
    assert (table.running, table.queued, table.counts.failed) == (0, 0, 3)


def test_cancelling_all_starts_none() -> None:
    table = started("a", "b", "c")
    sessions = [effect.session for effect in table.cancel_all(0.0) if isinstance(effect, Deliver)]
    assert sessions == ["b", "c", "a"]
    assert table.start(5) == []


@given(st.data())
def test_any_loss_and_repetition_delivers_each_token_once_in_order(data: st.DataObject) -> None:
    """The source sends from whatever index it is asked for; the connection drops and repeats what it likes."""
    length = data.draw(st.integers(0, 6), label="tokens")
    events: list[TokenEvent | SessionEnded] = [TokenEvent("a", index, 100 + index) for index in range(length)]
    events.append(SessionEnded("a", "length", length))
    table = started("a")
    read: list[object] = []
    pending: list[TokenEvent | SessionEnded] = list(events)
    now = 0.0
    for _ in range(200):
        now += RESUME_INTERVAL_S / 2
        effects: list[Effect] = list(table.on_tick(now))
        arriving, pending = pending, []
        for event in arriving:
            for _ in range(data.draw(st.sampled_from([1, 1, 0, 2]), label=f"copies of {event}")):
                happened = table.on_token if isinstance(event, TokenEvent) else table.on_ended
                effects += happened(event, now)  # type: ignore[arg-type]  # mypy joins the two into object
        read += delivered(effects)
        if read and isinstance(read[-1], SessionEnded):
            break
        asked = [e.message for e in effects if isinstance(e, SendSource) and isinstance(e.message, ResumeEvents)]
        # A new connection makes the coordinator ask even when it saw no gap.
        asked = asked or [e.message for e in table.resume(now) if isinstance(e, SendSource)]  # type: ignore[misc]
        pending = [event for event in events if not isinstance(event, TokenEvent) or event.index >= asked[-1].index]
    else:
        raise AssertionError("the session never ended")
    assert read == events
    assert table.running == 0
