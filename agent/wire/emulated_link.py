"""A directed link that takes its time: one sleeping thread that owns the connections to one device.

The loop feeds it in-process and never sleeps for it, so that a device computes while its frames are under way. Towards
DataPlane a connection over it is what `transport.Dealer` is: nothing is taken before its Connected event was handed
out, and what had not arrived when a connection was lost is dropped, for its sender keeps it.

Everything from this device to that one goes over the link in one order: frames, probes, and the replies that travel
back on a connection of the other's, which the thread hands back to the loop when they are due.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Union

from agent.wire.addresses import LinkShape
from agent.wire.codec import Buffer
from agent.wire.event_poll import EventPoll
from agent.wire.events import Connected, Disconnected, Event, Readable, Refused, Replied
from agent.wire.link_clock import LinkClock
from agent.wire.security import KeyPair
from agent.wire.transport import Context, Dealer, DealerEvents, Limits, check_parts, new_poll

MAX_REPLIES = 256
"""Replies under way at once; more are not taken, as on a connection whose queue is full."""


class _Parcel(NamedTuple):
    """What travels: a frame on a connection of this device, or a reply on one of the other's."""

    fed_s: float
    parts: list[bytes]
    over: Union[EmulatedDealer, bytes]
    """A connection, or the origin that a reply goes to."""
    connection: int
    """Which of a connection's handshakes the loop had heard of when it sent this."""

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.parts))


class _Open(NamedTuple):
    over: EmulatedDealer
    dealer: Dealer


class _Renew(NamedTuple):
    over: EmulatedDealer


class _Close(NamedTuple):
    over: EmulatedDealer


class _Stop(NamedTuple):
    pass


_Command = Union[_Parcel, _Open, _Renew, _Close, LinkShape, _Stop]


class _Happened(NamedTuple):
    """Thread to loop: an event of a connection."""

    over: EmulatedDealer
    event: Event


class _Due(NamedTuple):
    """Thread to loop: a reply has crossed the link."""

    origin: bytes
    parts: list[bytes]


class _Mailbox:
    """A queue between two threads whose reader waits in a poll. Appending and taking are atomic in CPython's deque."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._letters: deque[object] = deque()

    def put(self, letter: object) -> None:
        self._letters.append(letter)
        os.eventfd_write(self.descriptor, 1)

    def take(self) -> list[object]:
        """Everything there is; the descriptor is quiet until the next one."""
        os.eventfd_read(self.descriptor)
        return [self._letters.popleft() for _ in range(len(self._letters))]

    def close(self) -> None:
        os.close(self.descriptor)


class EmulatedDealer:
    """One connection over an emulated link; used like a `Dealer`, by the loop's thread."""

    def __init__(self, link: EmulatedLink, endpoint: str, server_key: str, limits: Limits) -> None:
        self.endpoint = endpoint
        self.server_key = server_key
        self.is_connected = False
        self.is_closed = False
        self.connections = 0
        """Connected events the loop was given."""
        self.fed = 0
        """Frames given to the thread; the loop's. What is under way is the difference to `done`."""
        self.done = 0
        """Frames that arrived or were dropped; the thread's."""
        self.opened = 0
        """Handshakes that succeeded; the thread's."""
        self._link = link
        self._limits = limits

    def send(self, parts: Sequence[Buffer]) -> bool:
        """False when the link does not take the message. Raises ValueError. See Dealer.send."""
        check_parts(parts, self._limits)
        if not self.is_connected:
            return False
        if self.fed - self.done >= self._limits.queue:
            if self._limits.full_is_lost:
                self.is_connected = False
                self._link.command(_Renew(self))
            return False
        self.fed += 1
        self._link.feed(parts, self, self.connections)
        return True

    def close(self) -> None:
        """What is under way is dropped."""
        self.is_closed = True
        self._link.command(_Close(self))


class EmulatedLink:
    """The loop's side of a link and of its thread. Raises ConfigError for a shape that is none."""

    def __init__(self, shape: LinkShape, poll: EventPoll, reply: Callable[[bytes, Sequence[Buffer]], object]) -> None:
        """`reply` sends on a connection of the other device's; it is called in the loop's thread, from `poll`."""
        self._poll = poll
        self._reply = reply
        self._inbox = _Mailbox()
        self._outbox = _Mailbox()
        self._replies = 0
        self._sender = _Sender(_clock(shape), self._inbox, self._outbox)
        self._poll.watch(self._outbox.descriptor, self._collect)
        self._thread = threading.Thread(target=self._sender.run, name=f"link-{shape.peer}", daemon=True)
        self._thread.start()

    def connect(
        self, context: Context, peer: str, endpoint: str, *, keys: KeyPair, server_key: str, limits: Limits
    ) -> EmulatedDealer:
        """A connection over this link, under the name `peer`. Raises ConfigError like `Dealer`."""
        over = EmulatedDealer(self, endpoint, server_key, limits)
        sender = self._sender
        events = DealerEvents(
            received=lambda parts: sender.report(over, Replied(peer, parts)),
            connected=lambda again: sender.report(over, Connected(peer, again)),
            disconnected=lambda: sender.report(over, Disconnected(peer)),
            refused=lambda: sender.report(over, Refused(peer)),
        )
        # Made here, so that a bad endpoint or key is the caller's error; the thread takes it over before any event.
        dealer = Dealer(context, new_poll(), endpoint, keys=keys, server_key=server_key, limits=limits, events=events)
        self.command(_Open(over, dealer))
        return over

    def reply(self, origin: bytes, parts: Sequence[Buffer]) -> bool:
        """Reply when the link has carried it; False when too many are under way."""
        if self._replies >= MAX_REPLIES:
            return False
        self._replies += 1
        self.feed(parts, origin, 0)
        return True

    def reshape(self, shape: LinkShape) -> None:
        """Another shape for what has not left yet. Raises ConfigError."""
        _clock(shape)
        self.command(shape)

    def feed(self, parts: Sequence[Buffer], over: EmulatedDealer | bytes, connection: int) -> None:
        # A view's memory is its owner's again once the frame is answered, which a copy of it under way may outlive.
        owned = [bytes(part) for part in parts]
        self.command(_Parcel(time.monotonic(), owned, over, connection))

    def command(self, command: _Command) -> None:
        self._inbox.put(command)

    def close(self) -> None:
        """End the thread and close its connections; what is under way is dropped."""
        self.command(_Stop())
        self._thread.join()
        self._poll.forget(self._outbox.descriptor)
        self._inbox.close()
        self._outbox.close()

    def _collect(self, events: list[Event]) -> None:
        """What the thread reported: changes of connections are handed out before messages, as everywhere."""
        for letter in self._outbox.take():
            match letter:
                case _Happened(over, event):
                    if not over.is_closed:
                        self._hand_out(over, event, events)
                case _Due(origin, parts):
                    self._replies -= 1
                    self._reply(origin, parts)
                case BaseException():
                    raise RuntimeError("the thread of an emulated link ended") from letter

    def _hand_out(self, over: EmulatedDealer, event: Event, events: list[Event]) -> None:
        if isinstance(event, Replied):
            events.append(event)
            return
        if isinstance(event, Connected):
            over.connections += 1
            over.is_connected = True
        elif isinstance(event, Disconnected):
            over.is_connected = False
        self._poll.pending.append(event)


class _Sender:
    """The thread's side: sleeps until the next frame has arrived, or something comes in."""

    def __init__(self, clock: LinkClock, inbox: _Mailbox, outbox: _Mailbox) -> None:
        self._clock = clock
        self._inbox = inbox
        self._outbox = outbox
        self._dealers: dict[EmulatedDealer, Dealer] = {}
        self._waiting: deque[_Parcel] = deque()
        """Handed over, not yet begun: the link is still taken."""
        self._travelling: deque[tuple[float, _Parcel]] = deque()
        """With the time of arrival."""
        self._is_stopped = False

    def run(self) -> None:
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

    def report(self, over: EmulatedDealer, event: Event) -> Event:
        if isinstance(event, Connected):
            over.opened += 1
        elif isinstance(event, Disconnected):
            self._drop(over)
        self._outbox.put(_Happened(over, event))
        return event

    def _wait(self, poll: EventPoll) -> None:
        due_s = self._travelling[0][0] if self._travelling else math.inf
        if self._waiting:
            due_s = min(due_s, self._clock.free_s)
        if due_s == math.inf:
            poll.poll(None)
            return
        wait_s = max(0.0, due_s - time.monotonic())
        # A poll counts whole milliseconds: the last part of one is slept.
        if not poll.poll(int(1e3 * wait_s)):
            time.sleep(min(1e-3, max(0.0, due_s - time.monotonic())))

    def _carry(self, poll: EventPoll) -> None:
        now_s = time.monotonic()
        while self._waiting and self._clock.free_s <= now_s:
            parcel = self._waiting.popleft()
            self._travelling.append((self._clock.send(parcel.fed_s, parcel.size_bytes), parcel))
        while self._travelling and self._travelling[0][0] <= now_s:
            self._deliver(poll, self._travelling.popleft()[1])

    def _deliver(self, poll: EventPoll, parcel: _Parcel) -> None:
        over = parcel.over
        if isinstance(over, bytes):
            self._outbox.put(_Due(over, parcel.parts))
            return
        over.done += 1
        # An unread event of the monitor holds a dealer back, also one that says nothing new: read them all, once.
        if over.opened == parcel.connection and not self._dealers[over].send(parcel.parts):
            poll.poll(0)
            if over.opened == parcel.connection and over in self._dealers:
                self._dealers[over].send(parcel.parts)

    def _obey(self, poll: EventPoll, events: list[Event]) -> None:
        for command in self._inbox.take():
            match command:
                case _Parcel():
                    self._accept(command)
                case _Open(over, dealer):
                    dealer.move(poll)
                    self._dealers[over] = dealer
                case _Renew(over):
                    if over in self._dealers:
                        self._dealers[over].renew()
                case _Close(over):
                    self._drop(over)
                    self._dealers.pop(over).close()
                case LinkShape():
                    self._clock = _clock(command)
                case _Stop():
                    self._is_stopped = True
        events.append(Readable(self._inbox.descriptor))

    def _accept(self, parcel: _Parcel) -> None:
        over = parcel.over
        if isinstance(over, EmulatedDealer) and parcel.connection != over.opened:
            over.done += 1
            return
        self._waiting.append(parcel)

    def _drop(self, over: EmulatedDealer) -> None:
        """Forget what is under way on a connection that was lost: its sender keeps it for the next one."""
        before = len(self._waiting) + len(self._travelling)
        self._waiting = deque(parcel for parcel in self._waiting if parcel.over is not over)
        self._travelling = deque(entry for entry in self._travelling if entry[1].over is not over)
        over.done += before - len(self._waiting) - len(self._travelling)


def _clock(shape: LinkShape) -> LinkClock:
    """Raises ConfigError for a shape that is none."""
    draws = random.Random(shape.seed)
    return LinkClock(shape, lambda: draws.gauss(0.0, 1.0))
