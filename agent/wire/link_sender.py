"""The thread of an emulated link: sleeps until the next frame has arrived, and owns the connections it goes over.

It is fed with letters and answers with letters, each side through a Mailbox; nothing else is shared between the two
threads but the counters of a Connection, each of which one of the two writes.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Union

from agent.wire.addresses import LinkShape
from agent.wire.event_poll import EventPoll
from agent.wire.events import Connected, Disconnected, Event, Readable, Replied
from agent.wire.link_clock import LinkClock
from agent.wire.transport import Dealer, new_poll

MAX_UNREAD_BYTES = 64 << 20
"""Of answers that the loop has not taken, on one connection: beyond, the connection is renewed, as where a queue is
full. The loop takes none while it computes, and answers are small."""
LETTER_BYTES = 1 << 10
"""What an answer takes beside its bytes, at most."""


class Connection:
    """Stands for one connection over the link, by identity."""

    __slots__ = ("done", "heard_bytes", "opened", "read_bytes")

    def __init__(self) -> None:
        self.done = 0
        """Frames that arrived or were dropped."""
        self.opened = 0
        """Handshakes that succeeded."""
        self.heard_bytes = 0
        """Of answers that the thread has passed on."""
        self.read_bytes = 0
        """Of those that the loop has taken; it alone writes this."""


class Parcel(NamedTuple):
    """What travels: a frame on a connection of this device, or a reply on one of the other's."""

    fed_s: float
    parts: list[bytes]
    over: Union[Connection, bytes]
    """A connection, or the origin that a reply goes to."""
    handshake: int
    """How many of the connection's handshakes the loop had heard of when it sent this."""

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.parts))


class Open(NamedTuple):
    over: Connection
    dealer: Dealer


class Renew(NamedTuple):
    over: Connection


class Close(NamedTuple):
    over: Connection


class Stop(NamedTuple):
    pass


Letter = Union[Parcel, Open, Renew, Close, LinkShape, Stop]
"""Loop to thread."""


class Happened(NamedTuple):
    """Thread to loop: an event of a connection."""

    over: Connection
    event: Event


class Due(NamedTuple):
    """Thread to loop: a reply has crossed the link."""

    origin: bytes
    parts: list[bytes]


class Mailbox:
    """A queue between two threads whose reader waits in a poll. A deque's appending and taking are atomic."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._letters: deque[object] = deque()

    def put(self, letter: object) -> None:
        self._letters.append(letter)
        os.eventfd_write(self.descriptor, 1)

    def take(self) -> list[object]:
        """Everything there is, when the descriptor is readable; it is quiet until the next one."""
        os.eventfd_read(self.descriptor)
        return [self._letters.popleft() for _ in range(len(self._letters))]

    def left(self) -> list[object]:
        """What nobody took, when no other thread uses this any more."""
        left, self._letters = list(self._letters), deque()
        return left

    def close(self) -> None:
        os.close(self.descriptor)


def answer_bytes(event: Replied) -> int:
    """What an answer that waits for the loop takes."""
    return LETTER_BYTES + sum(map(len, event.parts))


class LinkSender:
    """Everything that only the thread touches. `run` is its body; an error of it is the last letter it sends."""

    def __init__(self, shape: LinkShape, inbox: Mailbox, outbox: Mailbox) -> None:
        """Raises ConfigError for a shape that is none."""
        self._clock = seeded_clock(shape)
        self._inbox = inbox
        self._outbox = outbox
        self._dealers: dict[Connection, Dealer] = {}
        self._waiting: deque[Parcel] = deque()
        """Handed over, not begun: the link is still taken. So what is dropped here has cost the link nothing."""
        self._travelling: deque[tuple[float, Parcel]] = deque()
        """With the time of arrival."""
        self._taken: deque[object] = deque()
        """Letters that are being obeyed."""
        self._is_stopped = False

    def run(self) -> None:
        """Until Stop; all connections are closed then."""
        poll = new_poll()
        poll.watch(self._inbox.descriptor, lambda events: self._obey(poll, events))
        try:
            while not self._is_stopped:
                self._wait(poll)
                self._carry(poll)
        except BaseException as problem:  # the loop raises it: without this thread the device is cut off
            self._outbox.put(problem)
        finally:
            for dealer in self._dealers.values():
                dealer.close()
            close_unopened(self._taken)

    def report(self, over: Connection, event: Event) -> Event:
        """What a dealer tells of its connection; the event itself, so that the poll returns."""
        if isinstance(event, Connected):
            over.opened += 1
        elif isinstance(event, Disconnected):
            self._drop(over)
        elif isinstance(event, Replied):
            if over.heard_bytes - over.read_bytes > MAX_UNREAD_BYTES:
                if self._dealers[over].is_connected:
                    self._dealers[over].renew()
                return event
            over.heard_bytes += answer_bytes(event)
        self._outbox.put(Happened(over, event))
        return event

    def _wait(self, poll: EventPoll) -> None:
        due_s = self._travelling[0][0] if self._travelling else math.inf
        if self._waiting:
            due_s = min(due_s, self._clock.free_s)
        if due_s == math.inf:
            poll.poll(None)
        # A poll counts whole milliseconds: the last part of one is slept.
        elif not poll.poll(int(1e3 * max(0.0, due_s - time.monotonic()))):
            time.sleep(min(1e-3, max(0.0, due_s - time.monotonic())))

    def _carry(self, poll: EventPoll) -> None:
        now_s = time.monotonic()
        while self._waiting and self._clock.free_s <= now_s:
            parcel = self._waiting.popleft()
            # By the time it was handed over, so that a thread that woke late does not slow the link down.
            self._travelling.append((self._clock.send(parcel.fed_s, parcel.size_bytes), parcel))
        while self._travelling and self._travelling[0][0] <= now_s:
            self._deliver(poll, self._travelling.popleft()[1])

    def _deliver(self, poll: EventPoll, parcel: Parcel) -> None:
        over = parcel.over
        if isinstance(over, bytes):
            self._outbox.put(Due(over, parcel.parts))
            return
        over.done += 1
        # An unread event of the monitor holds a dealer back, also one that says nothing new: read them all, once.
        if over.opened == parcel.handshake and not self._dealers[over].send(parcel.parts):
            poll.poll(0)
            if over.opened == parcel.handshake and over in self._dealers:
                self._dealers[over].send(parcel.parts)

    def _obey(self, poll: EventPoll, events: list[Event]) -> None:
        self._taken.extend(self._inbox.take())
        while self._taken:
            match letter := self._taken.popleft():
                case Parcel():
                    self._accept(letter)
                case Open(over, dealer):
                    dealer.move(poll)
                    self._dealers[over] = dealer
                case Renew(over):
                    self._dealers[over].renew()
                case Close(over):
                    self._drop(over)
                    self._dealers.pop(over).close()
                case LinkShape():
                    self._clock = seeded_clock(letter)
                case Stop():
                    self._is_stopped = True
        events.append(Readable(self._inbox.descriptor))

    def _accept(self, parcel: Parcel) -> None:
        over = parcel.over
        # Also when the connection was lost before this was read, and no other one has come yet.
        if isinstance(over, Connection) and (parcel.handshake != over.opened or not self._dealers[over].is_connected):
            over.done += 1
            return
        self._waiting.append(parcel)

    def _drop(self, over: Connection) -> None:
        """Forget what is under way on a connection that was lost: its sender keeps it for the next one."""
        before = len(self._waiting) + len(self._travelling)
        self._waiting = deque(parcel for parcel in self._waiting if parcel.over is not over)
        self._travelling = deque(entry for entry in self._travelling if entry[1].over is not over)
        over.done += before - len(self._waiting) - len(self._travelling)


def close_unopened(letters: Iterable[object]) -> None:
    """Close the connections in letters that nobody will obey: an open socket keeps its context from terminating."""
    for letter in letters:
        if isinstance(letter, Open):
            letter.dealer.close()


def seeded_clock(shape: LinkShape) -> LinkClock:
    """Raises ConfigError for a shape that is none."""
    draws = random.Random(shape.seed)
    return LinkClock(shape, lambda: draws.gauss(0.0, 1.0))
