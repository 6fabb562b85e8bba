"""Giving parts away: what a client may read of a part, the loop that answers in turn, and an agent's process for it.

A peer serves what lies in its cache, from a process of its own: copying chunks would cost the worker milliseconds per
step. It gives no manifests: those come from the coordinator, which serves with the same loop (`edgectl.bulk_server`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from agent.compute.layer_file import LayerFile, LayerHeader
from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey
from agent.config import AgentConfig
from agent.errors import BadMessage
from agent.weight_child import BulkReady
from agent.wire.bulk import Fetch, Reply, ReplyKind, decode_fetch
from agent.wire.bulk_plane import BulkServerPlane
from agent.wire.bulk_turns import Turns
from agent.wire.events import Event, Readable, Received
from agent.wire.messages import Welcome
from agent.wire.security import AllowList, load_key_file
from agent.worker_channel import Stop, ToWorker, WorkerChannel, run_child

logger = logging.getLogger(__name__)

POLL_MS = 250
MOST_OPEN = 16
"""Parts that are open at a time: four for each of four clients. What is open is not evicted from the cache."""
IDLE_S = 60.0
"""A part that nobody asked for in this time is closed."""
MOST_ANSWERS = 16
"""Chunks sent between two looks at the sockets."""
NICENESS = 10
"""Of a device's time, giving weights away takes what decoding leaves."""


class Given(Protocol):
    """A part that can be read."""

    @property
    def header(self) -> LayerHeader:
        """What is in it."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a tensor that `header` has. Raises OSError, ValueError."""


class Parts(Protocol):
    """Answers a request that is well formed; never waits."""

    def answer(self, fetch: Fetch) -> Reply:
        """Of any kind but WAIT."""


class GivenFile:
    """A part of the cache, read through a descriptor: a page that is not in memory then stops no other thread."""

    def __init__(self, file: LayerFile) -> None:
        """Raises OSError."""
        self.header = file.header
        self._file = file
        self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See `Given.read`."""
        return os.pread(self._descriptor, length, self.header.entries[name].start + offset)

    def close(self) -> None:
        """Also gives up the lock on the file."""
        os.close(self._descriptor)


class OpenParts:
    """The files of a store that were asked for last, kept open."""

    def __init__(self, store: LayerStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._open: OrderedDict[tuple[PartKey, str], tuple[GivenFile, float]] = OrderedDict()

    def find(self, key: PartKey, part: str) -> GivenFile | None:
        """The part, None where the store does not have it."""
        now = self._clock()
        given, _ = self._open.pop((key, part), (None, 0.0))
        if given is None:
            file = self._store.find(key, part)
            if file is None:
                return None
            try:
                given = GivenFile(file)
            except OSError as problem:
                logger.warning("part_unreadable", extra={"file": str(file.path), "problem": str(problem)})
                return None
        self._open[key, part] = (given, now)
        self._close_until(lambda used_s: len(self._open) <= MOST_OPEN and now - used_s < IDLE_S)
        return given

    def close(self) -> None:
        """Close all."""
        self._close_until(lambda _: False)

    def close_idle(self) -> None:
        """Close what nobody has asked for in IDLE_S."""
        now = self._clock()
        self._close_until(lambda used_s: now - used_s < IDLE_S)

    def _close_until(self, stays: Callable[[float], bool]) -> None:
        """The longest unused first."""
        while self._open and not stays(next(iter(self._open.values()))[1]):
            _, (given, _) = self._open.popitem(last=False)
            given.close()


class StoreParts:
    """What a peer answers: tensors of the parts in its cache."""

    def __init__(self, open_parts: OpenParts) -> None:
        self._open_parts = open_parts

    def answer(self, fetch: Fetch) -> Reply:
        """See `Parts.answer`."""
        if not fetch.item:
            return Reply(fetch.number, ReplyKind.MISSING, detail="manifests come from the coordinator")
        try:
            key = key_of(fetch)
            given = self._open_parts.find(key, fetch.part)
        except ValueError as problem:
            return Reply(fetch.number, ReplyKind.REFUSED, detail=str(problem))
        if given is None:
            return Reply(fetch.number, ReplyKind.MISSING, detail=f"{fetch.part} of {key} is not in the cache here")
        return chunk_of(given, fetch)


def key_of(fetch: Fetch) -> PartKey:
    """Which rendering a request is about. Raises ValueError."""
    return PartKey(fetch.digest, fetch.quantization, fetch.block_size, fetch.compute)  # type: ignore[arg-type]


def chunk_of(given: Given, fetch: Fetch) -> Reply:
    """The bytes that are asked for, of a tensor of the part."""
    entry = given.header.entries.get(fetch.item)
    if entry is None:
        return Reply(fetch.number, ReplyKind.MISSING, detail=f"{fetch.part} has no tensor {fetch.item}")
    total = entry.stop - entry.start
    length = min(fetch.length, total - fetch.offset)
    if length <= 0:
        return Reply(fetch.number, ReplyKind.REFUSED, detail=f"offset {fetch.offset} of {total} bytes")
    try:
        data = given.read(fetch.item, fetch.offset, length)
    except OSError as problem:
        return Reply(fetch.number, ReplyKind.REFUSED, detail=f"{fetch.part} cannot be read: {problem.strerror}")
    if len(data) != length:
        return Reply(fetch.number, ReplyKind.REFUSED, detail=f"{fetch.part} was cut off")
    return Reply(fetch.number, ReplyKind.CHUNK, total, data=data)


def bytes_of(whole: bytes, fetch: Fetch) -> Reply:
    """A piece of a manifest."""
    data = whole[fetch.offset : fetch.offset + fetch.length]
    if not data:
        return Reply(fetch.number, ReplyKind.REFUSED, detail=f"offset {fetch.offset} of {len(whole)} bytes")
    return Reply(fetch.number, ReplyKind.CHUNK, len(whole), data=data)


class PartServer:
    """Answers requests in turn, within a rate. One thread calls `turn` again and again."""

    def __init__(self, plane: BulkServerPlane, parts: Parts, bytes_per_s: float) -> None:
        self.bytes_sent: dict[str, int] = {}
        """Bytes of parts and manifests, by device."""
        self._plane = plane
        self._parts = parts
        self._turns: Turns[tuple[bytes, str, Fetch]] = Turns(bytes_per_s)
        self._complained_of: set[str] = set()
        """Devices whose bad requests were logged: once each, or they could fill the disk."""

    def turn(self) -> list[Event]:
        """Wait for requests or for the next one's time, and answer; returns events that are no requests."""
        due_s = self._turns.due_s(time.monotonic())
        wait_ms = POLL_MS if due_s is None else min(POLL_MS, -(-int(due_s * 1e6) // 1000))
        others = [event for event in self._plane.poll(wait_ms) if not self._queue(event)]
        for _ in range(MOST_ANSWERS):
            request = self._turns.next(time.monotonic())
            if request is None:
                break
            self._answer(*request)
        for origin, _, fetch in self._turns.overdue(time.monotonic()):
            self._plane.reply(origin, Reply(fetch.number, ReplyKind.WAIT))
        return others

    def _queue(self, event: Event) -> bool:
        if not isinstance(event, Received):
            return False
        try:
            fetch = decode_fetch(event.parts)
        except BadMessage as problem:
            if event.device not in self._complained_of:
                self._complained_of.add(event.device)
                logger.warning("bad_bulk_message", extra={"device": event.device, "problem": str(problem)})
            return True
        # What is too much is dropped: the client asks again when it has waited in vain.
        self._turns.add(event.device, (event.origin, event.device, fetch), fetch.length, time.monotonic())
        return True

    def _answer(self, origin: bytes, device: str, fetch: Fetch) -> None:
        reply = self._parts.answer(fetch)
        sent_bytes = len(reply.data) if self._plane.reply(origin, reply) else 0
        self._turns.refund(fetch.length - sent_bytes)
        self.bytes_sent[device] = self.bytes_sent.get(device, 0) + sent_bytes


def serve(config: AgentConfig, channel: WorkerChannel) -> None:
    """Serve this device's cache until the supervisor says stop or is gone. Raises ConfigError."""
    allow = AllowList()
    plane = BulkServerPlane(load_key_file(config.key_file), allow, config.bulk_bind)
    store = LayerStore(config.cache_dir / "layers", config.cache_limit_bytes)
    open_parts = OpenParts(store)
    server = PartServer(plane, StoreParts(open_parts), config.bulk_rate_bytes_per_s)
    try:
        plane.register(channel.fileno())
        channel.send(BulkReady(plane.endpoint))
        while True:
            for event in server.turn():
                if isinstance(event, Readable) and not _on_supervisor(channel, allow):
                    return
            open_parts.close_idle()
    finally:
        open_parts.close()
        plane.close()


def _on_supervisor(channel: WorkerChannel, allow: AllowList) -> bool:
    """False when it is time to stop."""
    for message in channel.receive(ToWorker):
        if isinstance(message, Stop):
            return False
        if isinstance(message, Welcome):
            allow.replace({peer.key: peer.device for peer in message.peers})
    return True


def main(descriptor: int) -> int:
    """Entry of the child process."""

    def run(config: AgentConfig, channel: WorkerChannel) -> None:
        os.nice(NICENESS)
        serve(config, channel)

    return run_child(descriptor, "weights", run)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
