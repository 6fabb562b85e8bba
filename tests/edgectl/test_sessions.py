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
from edgectl.cluster_settings import MAX_QUEUED_SESSIONS, ClusterSettings
from edgectl.effects import Deliver, Effect, SendSource
from edgectl.engine import ANYBODY, PATIENCE_S, Claim, EngineError
from edgectl.routes import Seat
from edgectl.sessions import CANCEL_PATIENCE_S, RESUME_INTERVAL_S, SessionTable

SEAT = Seat(5, 0, 1, "src")


def seats(rows: int, micro_batch: int = 5) -> list[Seat]:
    return [Seat(micro_batch, 0, rows, "src")]


def opening(session: str) -> OpenSession:
    return OpenSession(session, 0, (1, 2, 3), 8, Sampling(), (7,))


def started(*sessions: str, rows: int = 1) -> SessionTable:
    table = SessionTable()
    for session in sessions:
        table.open(opening(session), ANYBODY, 0.0, ())
    table.start(seats(rows), 0.0)
    return table


def delivered(effects: list[Effect]) -> list[object]:
    return [effect.event for effect in effects if isinstance(effect, Deliver)]


def opened(effects: list[Effect]) -> list[tuple[str, int]]:
    """Sessions that were sent to a source, and to which micro-batch."""
    sent = [effect.message for effect in effects if isinstance(effect, SendSource)]
    return [(message.session, message.micro_batch) for message in sent if isinstance(message, OpenSession)]


def test_sessions_start_in_order_of_arrival_as_rows_come_free() -> None:
    table = SessionTable()
    for name in "abc":
        table.open(opening(name), ANYBODY, 0.0, ())
    first = table.start(seats(2), 1.5)
    assert first[0] == SendSource(
        "src", OpenSession("a", 5, (1, 2, 3), 8, Sampling(), (7,), patience_s=PATIENCE_S - 1.5)
    )
    assert opened(first) == [("a", 5), ("b", 5)]
    assert (table.running, table.queued) == (2, 1)
    assert table.start(seats(2), 2.0) == []
    table.on_ended(SessionEnded("b", "stop", 0), 0.0)
    assert opened(table.start(seats(2), 2.0)) == [("c", 5)]


def test_sessions_spread_over_micro_batches_and_take_no_row_twice() -> None:
    table = SessionTable()
    for name in "abcdefg":
        table.open(opening(name), ANYBODY, 0.0, ())
    places = [Seat(1, 0, 2, "src"), Seat(3, 0, 2, "src"), Seat(5, 1, 1, "other")]
    assert opened(table.start(places, 0.0)) == [("a", 1), ("b", 3), ("c", 5), ("d", 1), ("e", 3)]
    assert table.in_use() == {1: 2, 3: 2, 5: 1}
    table.on_ended(SessionEnded("e", "stop", 0), 0.0)
    assert opened(table.start(places, 0.0)) == [("f", 3)]
    assert table.cancel("c", 0.0)[0] == SendSource("other", CancelSession("c"))


def test_a_key_with_many_sessions_delays_another_one_by_one() -> None:
    table = SessionTable()
    for number in range(5):
        table.open(opening(f"many-{number}"), Claim("many"), 0.0, ())
    table.open(opening("one"), Claim("one"), 1.0, ())
    order = []
    for _ in range(6):
        ((session, _),) = opened(table.start(seats(1), 2.0))
        order.append(session)
        table.on_ended(SessionEnded(session, "stop", 0), 2.0)
    assert order == ["many-0", "one", "many-1", "many-2", "many-3", "many-4"]


def test_within_a_key_the_earlier_deadline_goes_first_and_a_late_one_is_due_now() -> None:
    table = SessionTable()
    table.open(opening("later"), Claim(priority=50), 0.0, ())
    table.open(opening("sooner"), Claim(priority=-20), 5.0, ())
    (first,) = table.start(seats(1), 40.0)
    assert isinstance(first, SendSource)
    assert isinstance(first.message, OpenSession)
    assert (first.message.session, first.message.patience_s) == ("sooner", 0.0)
    table.on_ended(SessionEnded("sooner", "stop", 0), 40.0)
    (second,) = table.start(seats(1), 40.0)
    assert isinstance(second, SendSource)
    assert isinstance(second.message, OpenSession)
    assert second.message.patience_s == PATIENCE_S + 50 - 40


@pytest.mark.parametrize("most", [MAX_QUEUED_SESSIONS, 3, 0])
def test_the_queue_is_bounded(most: int) -> None:
    table = SessionTable(ClusterSettings(max_queued=most))
    for number in range(most):
        table.open(opening(str(number)), ANYBODY, 0.0, ())
    with pytest.raises(EngineError, match="queue_full"):
        table.open(opening("one more"), ANYBODY, 0.0, ())
    assert table.queued == most


def test_a_gap_is_asked_for_once_an_interval_until_it_is_filled() -> None:
    table = started("a")
    first = TokenEvent("a", 0, 10)
    assert delivered(table.on_token(first, 0.0)) == [first]
    again = [SendSource("src", ResumeEvents("a", 1))]
    assert table.on_token(TokenEvent("a", 2, 12), 0.0) == again
    assert table.on_token(TokenEvent("a", 3, 13), 0.1) == []
    assert table.on_tick(0.2) == []
    assert table.on_tick(RESUME_INTERVAL_S) == again
    assert delivered(table.on_token(TokenEvent("a", 1, 11), 1.1)) == [TokenEvent("a", 1, 11)]
    assert table.on_tick(5.0) == []


def test_an_end_waits_for_the_tokens_before_it() -> None:
    table = started("a")
    end = SessionEnded("a", "length", 2)
    assert table.on_ended(end, 0.0) == [SendSource("src", ResumeEvents("a", 0))]
    table.on_token(TokenEvent("a", 0, 10), 0.1)
    table.on_token(TokenEvent("a", 1, 11), 0.1)
    assert delivered(table.on_ended(end, 0.1)) == [end]
    assert table.on_ended(end, 0.1) == []
    assert (table.counts.opened, table.counts.ended, table.counts.failed, table.counts.tokens) == (1, 1, 0, 2)


def test_a_failure_carries_its_code() -> None:
    table = started("a")
    (error,) = delivered(table.on_failed(SessionFailed("a", "answer_timeout", "hop a → b"), 0.0))
    assert isinstance(error, EngineError)
    assert (error.code, error.detail) == ("answer_timeout", "hop a → b")
    assert table.on_failed(SessionFailed("a", "answer_timeout", "again"), 0.0) == []


def test_cancelling_a_waiting_session_tells_no_device() -> None:
    table = started("a", "b")
    assert table.cancel("b", 0.0) == [Deliver("b", SessionEnded("b", "cancelled", 0))]
    assert table.queued == 0
    assert table.cancel("unknown", 0.0) == []


def test_a_cancelled_session_ends_at_once_and_keeps_its_row_until_confirmed() -> None:
    table = started("a", "b")
    table.on_token(TokenEvent("a", 0, 10), 0.0)
    assert table.cancel("a", 0.0) == [
        SendSource("src", CancelSession("a")),
        Deliver("a", SessionEnded("a", "cancelled", 1)),
    ]
    assert table.cancel("a", 0.0) == []
    assert delivered(table.on_token(TokenEvent("a", 1, 11), 0.1)) == []
    assert table.start(seats(1), 0.0) == []
    assert table.on_ended(SessionEnded("a", "cancelled", 4), 0.2) == []
    assert len(table.start(seats(1), 0.0)) == 1


def test_an_unconfirmed_cancellation_gives_its_row_up() -> None:
    table = started("a", "b")
    table.cancel("a", 0.0)
    table.on_tick(CANCEL_PATIENCE_S)
    assert table.start(seats(1), 0.0) == []
    table.on_tick(CANCEL_PATIENCE_S + 0.1)
    assert len(table.start(seats(1), 0.0)) == 1


def test_a_new_connection_of_the_source_is_asked_for_everything_since() -> None:
    table = started("a", "b", rows=2)
    table.on_token(TokenEvent("a", 0, 10), 0.0)
    table.cancel("b", 0.0)
    assert table.resume("src", 1.0) == [SendSource("src", ResumeEvents("a", 1)), SendSource("src", CancelSession("b"))]


def test_a_broken_micro_batch_spares_those_that_wait_and_those_in_others() -> None:
    table = SessionTable()
    for name in "abcd":
        table.open(opening(name), ANYBODY, 0.0, ())
    table.start([Seat(1, 0, 1, "src"), Seat(3, 0, 1, "src")], 0.0)
    failed = table.fail_running((1,), "frame_refused", "x", 0.0)
    assert [effect.session for effect in failed if isinstance(effect, Deliver)] == ["a"]
    assert opened(table.start([Seat(2, 0, 1, "src"), Seat(3, 0, 1, "src")], 0.0)) == [("c", 2)]
    waiting = table.fail_queued("device_lost", "x")
    assert [effect.session for effect in waiting if isinstance(effect, Deliver)] == ["d"]
    assert (table.running, table.queued, table.counts.failed) == (2, 0, 2)


def test_only_the_source_that_reconnects_is_asked() -> None:
    table = SessionTable()
    for name in "ab":
        table.open(opening(name), ANYBODY, 0.0, ())
    table.start([Seat(1, 0, 1, "src"), Seat(3, 1, 1, "other")], 0.0)
    assert table.resume("other", 1.0) == [SendSource("other", ResumeEvents("b", 0))]


def test_cancelling_all_starts_none() -> None:
    table = started("a", "b", "c")
    sessions = [effect.session for effect in table.cancel_all(0.0) if isinstance(effect, Deliver)]
    assert sessions == ["b", "c", "a"]
    assert table.start(seats(1), 0.0) == []


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
        asked = asked or [e.message for e in table.resume("src", now) if isinstance(e, SendSource)]  # type: ignore[misc]
        pending = [event for event in events if not isinstance(event, TokenEvent) or event.index >= asked[-1].index]
    else:
        raise AssertionError("the session never ended")
    assert read == events
    assert table.running == 0


@pytest.mark.parametrize(
    "event", [TokenEvent("a", 8, 1), TokenEvent("a", 1 << 62, 1), SessionEnded("a", "length", 9)], ids=str
)
def test_a_source_that_counts_beyond_what_was_asked_for_ends_the_session(event: TokenEvent | SessionEnded) -> None:
    table = started("a", "b", rows=1)
    effects = table.on_token(event, 1.0) if isinstance(event, TokenEvent) else table.on_ended(event, 1.0)
    assert effects[0] == SendSource("src", CancelSession("a"))
    (error,) = delivered(effects)
    assert isinstance(error, EngineError)
    assert error.code == "protocol_error"
    assert opened(table.start(seats(1), 1.0)) == [("b", 5)]
