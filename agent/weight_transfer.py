"""Fetching the weights of a load: the thread that asks for them, and the Weights the executor waits on.

The thread owns sockets, core and targets; the loading thread owns nothing but waits. Whatever ends the one ends the
other: a failure is raised where weights are waited for, and `close` stops the thread wherever it is.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from agent.compute.layer_file import LayerFile, LayerHeader
from agent.compute.layer_store import LayerStore
from agent.compute.part import EMBEDDING, PartKey, layer_of, part_of
from agent.compute.read_ahead import Expected, ReadAhead
from agent.compute.weights import EMBEDDING_TENSOR, array_names
from agent.errors import AgentError, BadCheckpoint, BadMessage, ConfigError, WeightsUnavailable
from agent.fetch_state import Arrival, Ask, Item
from agent.weight_fetch import COORDINATOR, FetchCore
from agent.weight_manifest import MODEL, decode_manifest
from agent.weight_target import PartTarget, Pwrite
from agent.wire.addresses import BulkSource
from agent.wire.bulk import Fetch, Reply, ReplyKind, decode_reply
from agent.wire.bulk_plane import BulkClient
from agent.wire.events import Connected, Disconnected, Event, Readable, Refused, Replied
from agent.wire.security import KeyPair
from planner.errors import PlannerError
from planner.memory import head_bytes, layer_weight_bytes
from planner.model_spec import ModelSpec

if TYPE_CHECKING:
    from agent.compute.graph_writer import WeightRef

logger = logging.getLogger(__name__)

POLL_MS = 200
"""How late silence is noticed, and a part that was being made asked for again."""
REPORT_S = 0.5
"""How often whoever waits says that it is alive: as often as the worker's loop does."""
MAX_PEERS = 8
"""Of a load's sources beside the coordinator; more connections would not fill a link any better."""

Waiting = Callable[[int, int], None]
"""Called with (bytes here, bytes in all) while weights are waited for; may raise to end the wait."""


class Transfer:
    """The weights of one load, from the coordinator and peers; satisfies `agent.compute.weights.Weights`."""

    spec: ModelSpec

    def __init__(
        self,
        key: PartKey,
        sources: Sequence[BulkSource],
        keys: KeyPair,
        store: LayerStore,
        waiting: Waiting,
        *,
        pwrite: Pwrite = os.pwrite,
    ) -> None:
        """Connects and waits for the model's config. Raises WeightsUnavailable, BadCheckpoint, ConfigError, planner's
        errors for a config.json we cannot run, and whatever `waiting` raises."""
        self._key = key
        self._store = store
        self._waiting = waiting
        self._pwrite = pwrite
        self._client = BulkClient(keys)
        peers = _connect(self._client, sources)
        self._core = FetchCore([MODEL], peers, time.monotonic())
        self._changed = threading.Condition()
        # From here on all of these are read and written under `_changed`.
        self._manifests: dict[str, bytearray] = {}
        self._targets: dict[str, PartTarget] = {}
        self._good: set[tuple[str, str]] = set()
        self._files: dict[str, LayerFile] = {}
        self._ahead = ReadAhead(())
        self._wanted: dict[str, int] = {}
        """Parts to fetch, and their bytes: by the planner's formula until the manifest tells."""
        self._held_bytes: dict[str, int] = {}
        self._new: list[str] = []
        self._failure: Exception | None = None
        self._has_spec = False
        self._finished: set[str] = set()
        self._stopping = False
        self._wake, self._woken = socket.socketpair()
        self._client.register(self._woken.fileno())
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()
        try:
            self._wait(lambda: self._has_spec)
        except BaseException:
            self.close()
            raise

    @property
    def bytes_done(self) -> int:
        """Bytes of the parts that are fetched which are here."""
        with self._changed:
            return sum(self._held_bytes.values())

    @property
    def bytes_total(self) -> int:
        with self._changed:
            return sum(self._wanted.values())

    @property
    def bytes_from(self) -> dict[str, int]:
        """Bytes of weights that came from each source; the coordinator is ""."""
        return dict(self._core.bytes_from)

    def want(self, parts: Sequence[str]) -> None:
        """Fetch these parts in this order, but for those the cache has."""
        for part in parts:
            file = self._store.find(self._key, part)
            with self._changed:
                if file is not None:
                    self._files[part] = file
                else:
                    self._wanted[part] = _about_bytes(self.spec, self._key, part)
                    self._new.append(part)
            self._waiting(self.bytes_done, self.bytes_total)
        self._ahead = ReadAhead(
            Expected(file.path, file.copied_bytes, file.file_bytes)
            for part, file in self._files.items()
            if part != EMBEDDING  # of which a token takes a row now and then
        )
        self._wake.send(b"\0")

    def arrays(self, weight: WeightRef) -> dict[str, NDArray[Any]]:
        """See `Weights.arrays`; waits until they are here. Raises WeightsUnavailable too."""
        return self._part_arrays(part_of(weight.sources), sorted(array_names(weight)))

    def embedding(self) -> NDArray[Any]:
        """See `Weights.embedding`; waits until it is here. Raises WeightsUnavailable too."""
        return self._part_arrays(EMBEDDING, [EMBEDDING_TENSOR])[EMBEDDING_TENSOR]

    def finish(self) -> None:
        """Wait until everything that is wanted lies in the cache too, where it can."""
        self._wait(lambda: self._finished >= self._wanted.keys())

    def close(self) -> None:
        """Stop fetching. What is here stays in the cache for the next time; arrays stay valid."""
        with self._changed:
            self._stopping = True
        self._wake.send(b"\0")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    # --- whoever waits ---

    def _part_arrays(self, part: str, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        wanted = {(part, name) for name in names}
        self._wait(lambda: part in self._files or wanted <= self._good)
        with self._changed:
            file = self._files.get(part)
            if file is not None:
                self._ahead.reached(file.path)
            held: LayerFile | PartTarget = file if file is not None else self._targets[part]
            try:
                return {name: held.array(name) for name in names}
            except KeyError as problem:
                raise BadCheckpoint(f"{self._key}: {part} has no tensor {problem.args[0]}") from problem

    def _wait(self, until: Callable[[], bool]) -> None:
        """Raises what ended the thread, and what `waiting` raises."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: until() or self._failure is not None, REPORT_S):
                    if self._failure is not None and not until():
                        raise self._failure
                    return
            self._waiting(self.bytes_done, self.bytes_total)

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except Exception as problem:
            if not isinstance(problem, (AgentError, PlannerError)):
                logger.exception("fetching_failed")
                problem = WeightsUnavailable(f"fetching weights failed: {type(problem).__name__}: {problem}")
            with self._changed:
                self._failure = problem
        finally:
            with self._changed:
                for target in self._targets.values():
                    target.close()
                self._changed.notify_all()
            self._client.close()

    def _turn(self) -> None:
        now = time.monotonic()
        with self._changed:
            if self._new:
                self._core.want(self._new, now)
                self._new = []
            asks = self._core.asks(now)
        for ask in asks:
            if not self._client.ask(ask.source, self._fetch(ask)):
                self._core.not_sent(ask)
        for event in self._client.poll(POLL_MS):
            self._on_event(event, time.monotonic())

    def _fetch(self, ask: Ask) -> Fetch:
        key = self._key
        name = (key.digest, key.quantization, key.block_size, key.compute)
        return Fetch(ask.number, *name, ask.part, ask.item, ask.offset, ask.length)

    def _on_event(self, event: Event, now: float) -> None:
        match event:
            case Connected(source):
                self._core.connected(source, now)
            case Disconnected(source):
                self._core.disconnected(source)
            case Refused(source):
                self._core.disconnected(source, "does not have this device's key on its list")
            case Readable():
                self._woken.recv(64)
            case Replied(source, parts):
                try:
                    reply = decode_reply(parts)
                except BadMessage as problem:
                    logger.warning("bad_bulk_message", extra={"source": source, "problem": str(problem)})
                    if source != COORDINATOR:
                        self._core.distrust(source, "sent what is no answer")
                        self._part_with_liars()
                    return
                self._on_reply(source, reply, now)

    def _on_reply(self, source: str, reply: Reply, now: float) -> None:
        match reply.kind:
            case ReplyKind.WAIT:
                self._core.on_wait(source, now)
            case ReplyKind.LATER:
                self._core.on_later(source, reply.number, now)
            case ReplyKind.MISSING | ReplyKind.REFUSED:
                self._core.on_missing(source, reply.number, reply.detail or reply.kind.name.lower(), now)
            case ReplyKind.CHUNK:
                arrival = self._core.on_chunk(source, reply.number, len(reply.data), reply.total_bytes, now)
                if arrival is not None and arrival.item:
                    self._on_tensor_bytes(arrival, memoryview(reply.data))
                elif arrival is not None:
                    self._on_manifest_bytes(arrival, reply.data)

    def _on_manifest_bytes(self, arrival: Arrival, data: Any) -> None:
        manifest = self._manifests.setdefault(arrival.part, bytearray())
        del manifest[arrival.offset :]
        manifest += data
        if not arrival.is_complete:
            return
        raw = bytes(self._manifests.pop(arrival.part))
        if arrival.part == MODEL:
            spec = decode_manifest(raw, self._key.digest)
            self._core.open_part(MODEL, [], {})
            with self._changed:
                self.spec, self._has_spec = spec, True
                self._changed.notify_all()
            return
        header = LayerHeader.parse(raw, self._key, arrival.part, Path(f"manifest of {arrival.part}"))
        target = PartTarget(header, self._key, arrival.part, self._store, self._pwrite)
        with self._changed:
            self._targets[arrival.part] = target
            self._wanted[arrival.part] = header.file_bytes
            self._held_bytes[arrival.part] = target.held_bytes()
        items = [Item(name, entry.stop - entry.start) for name, entry in header.entries.items()]
        for name in self._core.open_part(arrival.part, items, target.have()):
            self._judge(target, name)

    def _on_tensor_bytes(self, arrival: Arrival, data: memoryview) -> None:
        target = self._targets[arrival.part]
        target.write(arrival.item, arrival.offset, data)
        with self._changed:
            held = self._held_bytes[arrival.part] + len(data)
            self._held_bytes[arrival.part] = min(held, self._wanted[arrival.part])
        if arrival.is_complete:
            self._judge(target, arrival.item)

    def _judge(self, target: PartTarget, name: str) -> None:
        matches = target.matches(name)
        if not matches:
            target.forget(name)
        said = self._core.judge(target.part, name, matches)
        if said:
            logger.warning("weights_refused", extra={"problem": f"{self._key}: {said}"})
            with self._changed:
                self._held_bytes[target.part] = target.held_bytes()
            self._part_with_liars()
            return
        with self._changed:
            self._good.add((target.part, name))
            self._changed.notify_all()
            is_whole = all((target.part, each) in self._good for each in target.header.entries)
        if is_whole:
            target.finish()
            with self._changed:
                self._held_bytes[target.part] = target.header.file_bytes
                self._finished.add(target.part)
                self._changed.notify_all()

    def _part_with_liars(self) -> None:
        """So that they neither fill the log nor take the link."""
        for source in self._core.distrusted:
            self._client.disconnect(source)


def source_endpoint(source: BulkSource, coordinator: str) -> str:
    """Where to connect: the coordinator may leave its host to whoever knows how to reach its control endpoint."""
    scheme, host, rest = source.endpoint.partition("tcp://*:")
    if scheme or not host:
        return source.endpoint
    return f"{coordinator.rpartition(':')[0]}:{rest}"


def _connect(client: BulkClient, sources: Sequence[BulkSource]) -> list[str]:
    """Connects to the coordinator and to peers; returns the peers' names. Raises ConfigError, WeightsUnavailable."""
    peers: list[str] = []
    coordinator = [source for source in sources if source.device == COORDINATOR]
    if not coordinator:
        client.close()
        raise WeightsUnavailable("the coordinator is not among the sources of the load: no manifest to check against")
    for source in (coordinator[0], *(source for source in sources if source.device != COORDINATOR)):
        if len(peers) == MAX_PEERS or source.device in peers:
            continue
        try:
            client.connect(source.device, source.endpoint, source.key)
        except ConfigError as problem:
            if source.device == COORDINATOR:
                client.close()
                raise
            logger.warning("source_unusable", extra={"source": source.device, "problem": str(problem)})
            continue
        if source.device != COORDINATOR:
            peers.append(source.device)
    return peers


def _about_bytes(spec: ModelSpec, key: PartKey, part: str) -> int:
    """Bytes of a part before its manifest is here."""
    if part == EMBEDDING:
        return 2 * spec.vocab_size * spec.hidden_size
    size = layer_weight_bytes if layer_of(part) is not None else head_bytes
    return size(spec, key.quantization, key.block_size)
