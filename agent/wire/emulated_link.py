"""A directed link that takes its time, seen from the loop, which feeds its thread and never sleeps for it.

So a device computes while its frames are under way. Towards DataPlane a connection over a link is what
`transport.Dealer` is: nothing is taken before its Connected event was handed out, and what had not arrived when a
connection was lost is dropped, for its sender keeps it.

Everything from this device to that one goes over the link in one order: frames, probes, and the replies that travel
back on a connection of the other's, which the thread hands back to the loop when they are due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from agent.wire.addresses import LinkShape
from agent.wire.codec import Buffer
from agent.wire.event_poll import EventPoll
from agent.wire.events import Connected, Disconnected, Event, Refused, Replied
from agent.wire.link_clock import check_shape
from agent.wire.link_sender import (
    Close,
    Connection,
    Due,
    Happened,
    LinkSender,
    Mailbox,
    Open,
    Parcel,
    Renew,
    Stop,
    answer_bytes,
    close_unopened,
)
from agent.wire.security import KeyPair
from agent.wire.transport import Context, Dealer, DealerEvents, Limits, check_parts, new_poll

MAX_REPLIES = 256
"""Replies under way at once; more are not taken, as on a connection whose queue is full."""


class EmulatedDealer:
    """One connection over an emulated link; used like a `Dealer`, by the loop's thread."""

    def __init__(
        self, inbox: Mailbox, endpoint: str, server_key: str, limits: Limits, closed: Callable[[Connection], object]
    ) -> None:
        self.endpoint = endpoint
        self.server_key = server_key
        self.is_connected = False
        self.over = Connection()
        self._closed = closed
        self._fed = 0
        """Frames given to the thread."""
        self._handshakes = 0
        """Connected events that were handed out."""
        self._inbox = inbox
        self._limits = limits

    def send(self, parts: Sequence[Buffer]) -> bool:
        """False when the link does not take the message. Raises ValueError. See Dealer.send."""
        check_parts(parts, self._limits)
        if not self.is_connected:
            return False
        if self._fed - self.over.done >= self._limits.queue:
            if self._limits.full_is_lost:
                self.is_connected = False
                self._inbox.put(Renew(self.over))
            return False
        self._fed += 1
        self._inbox.put(_parcel(parts, self.over, self._handshakes))
        return True

    def close(self) -> None:
        """What is under way is dropped."""
        self._closed(self.over)
        self._inbox.put(Close(self.over))

    def heard(self, event: Event) -> None:
        """A change of this connection is handed out now."""
        if isinstance(event, Connected):
            self._handshakes += 1
            self.is_connected = True
        elif isinstance(event, Disconnected):
            self.is_connected = False


class EmulatedLink:
    """A link, its thread and the connections over it."""

    def __init__(self, shape: LinkShape, poll: EventPoll, reply: Callable[[bytes, Sequence[Buffer]], object]) -> None:
        """`reply` sends on a connection of the other device's; it is called in the loop's thread, from `poll`.

        Raises ConfigError for a shape that is none.
        """
        check_shape(shape)
        self._poll = poll
        self._reply = reply
        self._dealers: dict[Connection, EmulatedDealer] = {}
        self._replies = 0
        self._inbox = Mailbox()
        self._outbox = Mailbox()
        self._sender = LinkSender(shape, self._inbox, self._outbox)
        self._poll.watch(self._outbox.descriptor, self._collect)
        self._thread = threading.Thread(target=self._sender.run, name=f"link-{shape.peer}", daemon=True)
        self._thread.start()

    def connect(
        self, context: Context, peer: str, endpoint: str, *, keys: KeyPair, server_key: str, limits: Limits
    ) -> EmulatedDealer:
        """A connection over this link, under the name `peer`. Raises ConfigError like `Dealer`."""
        dealer = EmulatedDealer(self._inbox, endpoint, server_key, limits, self._dealers.pop)
        sender, over = self._sender, dealer.over
        events = DealerEvents(
            received=lambda parts: sender.report(over, Replied(peer, parts)),
            connected=lambda again: sender.report(over, Connected(peer, again)),
            disconnected=lambda: sender.report(over, Disconnected(peer)),
            refused=lambda: sender.report(over, Refused(peer)),
        )
        # Made here, so that a bad endpoint or key is the caller's error; the thread takes it over before any event.
        real = Dealer(context, new_poll(), endpoint, keys=keys, server_key=server_key, limits=limits, events=events)
        self._dealers[over] = dealer
        self._inbox.put(Open(over, real))
        return dealer

    def reply(self, origin: bytes, parts: Sequence[Buffer]) -> bool:
        """Reply when the link has carried it; False when too many are under way."""
        if self._replies >= MAX_REPLIES:
            return False
        self._replies += 1
        self._inbox.put(_parcel(parts, origin, 0))
        return True

    def reshape(self, shape: LinkShape) -> None:
        """Another shape for what has not left yet. Raises ConfigError."""
        check_shape(shape)
        self._inbox.put(shape)

    def close(self) -> None:
        """End the thread and close its connections; what is under way is dropped."""
        self._inbox.put(Stop())
        self._thread.join()
        close_unopened(self._inbox.left())
        self._poll.forget(self._outbox.descriptor)
        self._inbox.close()
        self._outbox.close()

    def _collect(self, events: list[Event]) -> None:
        """What the thread reported: changes of connections are handed out before messages, as everywhere."""
        for letter in self._outbox.take():
            match letter:
                case Happened(over, event):
                    self._hand_out(over, event, events)
                case Due(origin, parts):
                    self._replies -= 1
                    self._reply(origin, parts)
                case BaseException():
                    raise RuntimeError("the thread of an emulated link ended") from letter

    def _hand_out(self, over: Connection, event: Event, events: list[Event]) -> None:
        if isinstance(event, Replied):
            over.read_bytes += answer_bytes(event)
        if over not in self._dealers:
            return  # closed meanwhile
        if isinstance(event, Replied):
            events.append(event)
            return
        self._dealers[over].heard(event)
        self._poll.pending.append(event)


def _parcel(parts: Sequence[Buffer], over: Connection | bytes, handshake: int) -> Parcel:
    # A view's memory is its owner's again once its frame is answered, which a second copy under way may outlive.
    return Parcel(time.monotonic(), [bytes(part) for part in parts], over, handshake)
