"""The thread of an emulated link without a network: its letters, its sleep, its end."""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.errors import ConfigError
from agent.wire.addresses import LinkShape
from agent.wire.event_poll import EventPoll
from agent.wire.events import Replied
from agent.wire.link_sender import (
    MAX_UNREAD_BYTES,
    Close,
    Connection,
    Due,
    Happened,
    LinkSender,
    Mailbox,
    Open,
    Parcel,
    Stop,
    answer_bytes,
    seeded_clock,
)


@contextmanager
def sender(shape: LinkShape) -> Iterator[tuple[Mailbox, Mailbox]]:
    """A running thread's (inbox, outbox)."""
    inbox, outbox = Mailbox(), Mailbox()
    thread = threading.Thread(target=LinkSender(shape, inbox, outbox).run)
    thread.start()
    try:
        yield inbox, outbox
    finally:
        inbox.put(Stop())
        thread.join()
        inbox.close()
        outbox.close()


def letters(mailbox: Mailbox, count: int) -> list[tuple[float, object]]:
    taken: list[tuple[float, object]] = []
    while len(taken) < count:
        assert select.select([mailbox.descriptor], [], [], 5)[0]
        taken += [(time.monotonic(), letter) for letter in mailbox.take()]
    return taken


def reply(number: int, size: int, fed_s: float) -> Parcel:
    return Parcel(fed_s, [bytes(size)], b"%d" % number, 0)


def test_no_letter_is_lost_between_two_threads() -> None:
    mailbox = Mailbox()
    writer = threading.Thread(target=lambda: deque(map(mailbox.put, range(20_000)), maxlen=0))
    writer.start()
    assert [letter for _, letter in letters(mailbox, 20_000)] == list(range(20_000))
    writer.join()
    assert not select.select([mailbox.descriptor], [], [], 0)[0]
    mailbox.close()


def test_replies_come_back_when_they_are_due() -> None:
    shape = LinkShape("peer", bytes_per_s=1e6, burst_bytes=3000, latency_ms=12.5)
    clock = seeded_clock(shape)
    with sender(shape) as (inbox, outbox):
        start_s = time.monotonic()
        due_s = []
        for number in range(40):
            inbox.put(reply(number, 1000 + number, start_s))
            due_s.append(clock.send(start_s, 1000 + number))
        taken = letters(outbox, 40)
    assert [letter for _, letter in taken] == [Due(b"%d" % number, [bytes(1000 + number)]) for number in range(40)]
    late_s = sorted(at_s - due for (at_s, _), due in zip(taken, due_s, strict=True))
    assert late_s[0] >= 0.0
    assert late_s[20] < 0.01, "asleep until then, not until the next whole something"


def test_a_thread_that_wakes_late_does_not_slow_the_link_down() -> None:
    """The bucket goes by when a frame was handed over: 1 s ago, so that both have long arrived."""
    with sender(LinkShape("peer", bytes_per_s=1e3, burst_bytes=0)) as (inbox, outbox):
        start_s = time.monotonic()
        for number in range(2):
            inbox.put(reply(number, 400, start_s - 1.0))
        assert letters(outbox, 2)[-1][0] - start_s < 0.3


def test_another_shape_is_for_what_has_not_left() -> None:
    with sender(LinkShape("peer", bytes_per_s=1.0)) as (inbox, outbox):
        inbox.put(LinkShape("peer"))
        inbox.put(reply(0, 1000, time.monotonic()))
        assert letters(outbox, 1)[0][1] == Due(b"0", [bytes(1000)])


class NoPoller:
    """Watches nothing."""

    def register(self, source: object, flags: int) -> None:
        pass

    def unregister(self, source: object) -> None:
        pass

    def poll(self, timeout: int | None) -> list[tuple[object, int]]:
        return []


class Deaf:
    """A dealer that takes everything and tells nothing."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.is_closed = False
        self.is_connected = True
        self.renewals = 0

    def move(self, poll: EventPoll) -> None:
        pass

    def send(self, parts: list[bytes]) -> bool:
        self.sent.append(parts)
        return True

    def renew(self) -> None:
        self.renewals += 1
        self.is_connected = False

    def close(self) -> None:
        self.is_closed = True


def opened(inbox: Mailbox) -> tuple[Connection, Deaf]:
    over, dealer = Connection(), Deaf()
    over.opened = 1
    inbox.put(Open(over, dealer))  # type: ignore[arg-type]
    return over, dealer


def test_what_was_sent_before_a_loss_was_heard_of_costs_the_link_nothing() -> None:
    with sender(LinkShape("peer", bytes_per_s=1.0)) as (inbox, outbox):
        over, dealer = opened(inbox)
        inbox.put(Parcel(time.monotonic(), [bytes(100)], over, 0))
        inbox.put(reply(0, 0, time.monotonic()))
        letters(outbox, 1)
        assert (over.done, dealer.sent) == (1, [])
    assert dealer.is_closed


def test_what_is_read_after_a_loss_and_before_the_next_connection_costs_the_link_nothing() -> None:
    with sender(LinkShape("peer", bytes_per_s=1.0)) as (inbox, outbox):
        over, dealer = opened(inbox)
        dealer.is_connected = False
        inbox.put(Parcel(time.monotonic(), [bytes(100)], over, 1))
        inbox.put(reply(0, 0, time.monotonic()))
        letters(outbox, 1)
        assert (over.done, dealer.sent) == (1, [])


def test_answers_that_nobody_takes_are_a_lost_connection() -> None:
    inbox, outbox = Mailbox(), Mailbox()
    link = LinkSender(LinkShape("peer"), inbox, outbox)
    over, dealer = opened(inbox)
    link._obey(EventPoll(NoPoller(), 0), [])
    answer = Replied("peer", [bytes(1 << 20)])
    for _ in range(500):
        link.report(over, answer)
    taken = outbox.take()
    assert MAX_UNREAD_BYTES <= len(taken) << 20 <= MAX_UNREAD_BYTES + (2 << 20)
    assert dealer.renewals == 1
    over.read_bytes += len(taken) * answer_bytes(answer)
    link.report(over, answer)
    assert outbox.take() == [Happened(over, answer)]
    inbox.close()
    outbox.close()


def test_connections_in_letters_that_were_not_read_are_closed() -> None:
    inbox, outbox = Mailbox(), Mailbox()
    inbox.put(Close(Connection()))  # which ends the thread
    _, dealer = opened(inbox)
    LinkSender(LinkShape("peer"), inbox, outbox).run()
    assert dealer.is_closed
    inbox.close()
    outbox.close()


def test_what_waits_behind_a_dropped_frame_goes_on() -> None:
    """The link is taken until that frame would have left: its bytes were on their way."""
    with sender(LinkShape("peer", bytes_per_s=1e4)) as (inbox, outbox):
        over, dealer = opened(inbox)
        fed_s = time.monotonic()
        inbox.put(Parcel(fed_s, [bytes(1000)], over, 1))
        inbox.put(reply(0, 1000, fed_s))
        inbox.put(Close(over))
        assert letters(outbox, 1)[0][0] - fed_s >= 0.1
        assert dealer.sent == []
        assert dealer.is_closed
        assert over.done == 1


def test_an_error_is_the_last_letter() -> None:
    inbox, outbox = Mailbox(), Mailbox()
    inbox.put(Close(Connection()))  # which was never opened: a bug of ours
    LinkSender(LinkShape("peer"), inbox, outbox).run()
    [(_, letter)] = letters(outbox, 1)
    assert isinstance(letter, KeyError)
    inbox.close()
    outbox.close()


def test_a_shape_that_is_none_is_refused_before_there_is_a_thread() -> None:
    with pytest.raises(ConfigError, match="latency_ms"):
        seeded_clock(LinkShape("peer", latency_ms=-1.0))


def test_one_seed_is_one_sequence() -> None:
    def arrivals(seed: int) -> list[float]:
        clock = seeded_clock(LinkShape("peer", latency_ms=9.0, jitter_ms=3.0, seed=seed))
        return [clock.send(float(number), 1) for number in range(50)]

    assert arrivals(1) == arrivals(1) != arrivals(2)
