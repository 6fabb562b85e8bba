"""Sources of weights on loopback for tests: real sockets, a thread each, and whatever misbehaviour is asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from agent.compute.checkpoint import Checkpoint
from agent.compute.layer_store import LayerStore
from agent.compute.model_digest import model_digest
from agent.compute.part import PartKey, parts_of
from agent.compute.weights import EMBEDDING_TENSOR, make_part, part_weights
from agent.weight_manifest import MODEL, encode_manifest
from agent.weight_server import OpenParts, Parts, PartServer, StoreParts, bytes_of, chunk_of, key_of
from agent.weight_transfer import Transfer
from agent.wire.addresses import BulkSource
from agent.wire.bulk import Fetch, Reply, ReplyKind
from agent.wire.bulk_plane import BulkServerPlane
from agent.wire.security import AllowList, KeyPair, generate_keys
from planner.types import LayerRange
from tests.fakes.fake_engine import MODEL_DIR

CHECKPOINT = Checkpoint.open(MODEL_DIR)
KEY = PartKey(model_digest(MODEL_DIR), "int4", 32, "fp32")
PARTS = parts_of([LayerRange(0, CHECKPOINT.spec.num_layers)], CHECKPOINT.spec.num_layers)
GIB = 1 << 30

Twist = Callable[[Fetch, Reply], Reply | None]
"""What a source makes of its answer; None keeps silent."""


def filled_store(root: Path, parts: tuple[str, ...] = PARTS) -> LayerStore:
    """A store with parts of the bundled model."""
    store = LayerStore(root, GIB)
    for part in parts:
        assert store.write(KEY, part, make_part(CHECKPOINT, KEY, part)) is not None
    return store


def check_arrays(fetched: Transfer, parts: Sequence[str]) -> None:
    """Every array of every part equals what a device that has the model makes of it."""
    assert fetched.spec == CHECKPOINT.spec
    for part in parts:
        expected = make_part(CHECKPOINT, KEY, part)
        found: dict[str, object] = {}
        for weight in part_weights(CHECKPOINT.spec, KEY, part):
            found |= fetched.arrays(weight)
        if part == "embedding":
            found[EMBEDDING_TENSOR] = fetched.embedding()
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(np.asarray(found[name]), array), name


class ManifestParts:
    """As the coordinator answers, from a store that has everything."""

    def __init__(self, store: LayerStore) -> None:
        self._open_parts = OpenParts(store)
        self._manifest = encode_manifest(MODEL_DIR, None)

    def answer(self, fetch: Fetch) -> Reply:
        if fetch.part == MODEL:
            return bytes_of(self._manifest, fetch)
        given = self._open_parts.find(key_of(fetch), fetch.part)
        if given is None:
            return Reply(fetch.number, ReplyKind.MISSING, detail="not in the store")
        return chunk_of(given, fetch) if fetch.item else bytes_of(given.header.raw, fetch)


class _Twisted:
    def __init__(self, parts: Parts, twist: Twist, asked: list[Fetch]) -> None:
        self._parts = parts
        self._twist = twist
        self._asked = asked

    def answer(self, fetch: Fetch) -> Reply:
        self._asked.append(fetch)
        reply = self._twist(fetch, self._parts.answer(fetch))
        # An answer to a number that was never used is one that nobody waits for.
        return reply if reply is not None else Reply((1 << 53) - 1, ReplyKind.LATER)


class WeightSource:
    """A peer, or the coordinator under the name ""; serves from construction to `close`."""

    def __init__(
        self,
        name: str,
        store: LayerStore,
        client: KeyPair,
        twist: Twist = lambda _, reply: reply,
        bytes_per_s: float = 0.0,
    ) -> None:
        keys = generate_keys()
        self.asked: list[Fetch] = []
        self._plane = BulkServerPlane(keys, AllowList({client.public: "device"}), "tcp://127.0.0.1:0")
        parts: Parts = ManifestParts(store) if not name else StoreParts(OpenParts(store))
        self.server = PartServer(self._plane, _Twisted(parts, twist, self.asked), bytes_per_s)
        self.source = BulkSource(name, self._plane.endpoint, keys.public)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> WeightSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tensors_asked(self) -> list[tuple[str, str, int]]:
        """(part, tensor, offset) of every request that was no manifest."""
        return [(fetch.part, fetch.item, fetch.offset) for fetch in list(self.asked) if fetch.item]

    def close(self) -> None:
        self._stopping = True
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._plane):
            while not self._stopping:
                self.server.turn()
