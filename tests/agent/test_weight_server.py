"""Answers of those who give parts away: exact bytes, nothing beyond them, and a bounded number of open files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.compute.layer_store import LayerStore
from agent.weight_server import IDLE_S, MOST_OPEN, OpenParts, PartServer, StoreParts, bytes_of, chunk_of, key_of
from agent.wire.bulk import MAX_CHUNK_BYTES, Fetch, Reply, ReplyKind, encode_fetch
from agent.wire.events import Event, Received
from tests.fakes.weight_sources import KEY, filled_store

TENSOR = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LayerStore:
    return filled_store(
        tmp_path_factory.mktemp("store"), (*(f"layer-{n:03d}" for n in range(MOST_OPEN + 2)), "embedding")
    )


def fetch(part: str = "embedding", item: str = TENSOR, offset: int = 0, length: int = MAX_CHUNK_BYTES) -> Fetch:
    return Fetch(3, KEY.digest, KEY.quantization, KEY.block_size, KEY.compute, part, item, offset, length)


def test_chunks_make_up_the_tensor(store: LayerStore) -> None:
    file = store.find(KEY, "embedding")
    assert file is not None
    parts, found = StoreParts(OpenParts(store)), b""
    expected = file.array(TENSOR).tobytes()
    while len(found) < len(expected):
        reply = parts.answer(fetch(offset=len(found), length=100_001))
        assert (reply.number, reply.kind, reply.total_bytes) == (3, ReplyKind.CHUNK, len(expected))
        found += bytes(reply.data)
    assert found == expected


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (fetch(offset=1 << 30), ReplyKind.REFUSED),
        (fetch(item="lm_head.weight"), ReplyKind.MISSING),
        (fetch(item=""), ReplyKind.MISSING),
        (fetch(part="head"), ReplyKind.MISSING),
        (fetch(part="model"), ReplyKind.REFUSED),
        (fetch(part="layer-999"), ReplyKind.MISSING),
        (fetch()._replace(digest="0" * 64), ReplyKind.MISSING),
        (fetch()._replace(quantization="int3"), ReplyKind.REFUSED),
        (fetch()._replace(block_size=0), ReplyKind.REFUSED),
    ],
)
def test_what_is_not_there_is_refused(store: LayerStore, request_: Fetch, kind: ReplyKind) -> None:
    reply = StoreParts(OpenParts(store)).answer(request_)
    assert reply.kind is kind
    assert reply.detail
    assert not reply.data


def test_a_file_that_was_cut_off_since_is_refused(store: LayerStore, tmp_path: Path) -> None:
    own = filled_store(tmp_path, ("embedding",))
    open_parts = OpenParts(own)
    given = open_parts.find(KEY, "embedding")
    assert given is not None
    os.truncate(own.root / KEY.directory / "embedding.safetensors", 5000)
    assert chunk_of(given, fetch()).kind is ReplyKind.REFUSED


def test_few_files_stay_open_and_none_that_nobody_asks_for(store: LayerStore) -> None:
    now = 0.0
    open_parts = OpenParts(store, lambda: now)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(MOST_OPEN + 2):
        assert open_parts.find(KEY, f"layer-{number:03d}") is not None
        assert len(open_parts._open) <= MOST_OPEN
    assert open_parts.find(KEY, "layer-005") is open_parts.find(KEY, "layer-005")
    now = IDLE_S / 2
    open_parts.find(KEY, "layer-005")
    now = IDLE_S
    open_parts.close_idle()
    assert [part for _, part in open_parts._open] == ["layer-005"]
    open_parts.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert open_parts.find(KEY, "head") is None


def test_a_manifest_comes_in_pieces() -> None:
    whole = bytes(range(256)) * 10
    assert bytes_of(whole, fetch(offset=2000, length=1000)).data == whole[2000:]
    assert bytes_of(whole, fetch(offset=2560)).kind is ReplyKind.REFUSED
    assert key_of(fetch()) == KEY


class Silent:
    """A plane nobody reads from, with the requests it is given."""

    def __init__(self, *events: Event) -> None:
        self.events = list(events)

    def poll(self, timeout_ms: int | None) -> list[Event]:
        events, self.events = self.events, []
        return events

    def reply(self, origin: bytes, reply: Reply) -> bool:
        return False


def test_what_did_not_leave_is_nobodys_share_of_the_rate(store: LayerStore) -> None:
    """A device that asks and leaves, again and again, takes no bandwidth from the others."""
    requests = [Received(b"%d" % n, "gone", encode_fetch(fetch())) for n in range(10)]
    server = PartServer(Silent(*requests), StoreParts(OpenParts(store)), 1000.0)  # type: ignore[arg-type]
    for _ in range(5):
        server.turn()
    assert server._turns.due_s(time.monotonic()) is None
    assert server.bytes_sent["gone"] == 0


def test_bad_requests_of_a_device_are_logged_once(store: LayerStore, caplog: pytest.LogCaptureFixture) -> None:
    requests = [Received(b"1", device, [b"nonsense"]) for device in ("a", "b") for _ in range(100)]
    server = PartServer(Silent(*requests), StoreParts(OpenParts(store)), 0.0)  # type: ignore[arg-type]
    server.turn()
    assert len(caplog.records) == 2
