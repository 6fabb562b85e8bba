"""Fetching over real sockets: equal bytes from peers and coordinator, damage, death, a full disk, and going on."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from agent.compute.layer_store import LayerStore
from agent.compute.model_digest import model_digest
from agent.config import AgentConfig
from agent.errors import BadCheckpoint, WeightsUnavailable
from agent.loader import _sources
from agent.weight_fetch import COORDINATOR, SILENCE_S
from agent.weight_manifest import encode_manifest
from agent.weight_server import bytes_of
from agent.weight_transfer import Transfer, source_endpoint
from agent.wire.addresses import BulkSource
from agent.wire.bulk import Fetch, Reply, ReplyKind
from agent.wire.bulk_turns import BURST_S
from agent.wire.messages import Load
from agent.wire.security import generate_keys
from planner.errors import UnsupportedModel
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.weight_sources import GIB, KEY, PARTS, WeightSource, check_arrays, filled_store

DEVICE = generate_keys()
SOME = ("layer-000", "layer-001", "head", "embedding")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> LayerStore:
    return filled_store(tmp_path_factory.mktemp("full"))


def transfer(sources: Iterable[WeightSource], store: LayerStore, **settings: object) -> Transfer:
    addresses = [source.source for source in sources]
    return Transfer(KEY, addresses, DEVICE, store, lambda done, total: None, **settings)  # type: ignore[arg-type]


def wait_for_peer(fetched: Transfer, peer: str) -> None:
    """Until it is connected: else the coordinator may be asked in its place."""
    while not fetched._core._sources[peer].connected:
        time.sleep(0.01)


def files_in(store: LayerStore) -> list[str]:
    return sorted(path.name for path in store.root.glob("*/*/*") if path.suffix != ".mark")


def test_all_parts_from_the_coordinator_alone(full: LayerStore, tmp_path: Path) -> None:
    store = LayerStore(tmp_path, GIB)
    with WeightSource(COORDINATOR, full, DEVICE) as coordinator:
        with closing(transfer([coordinator], store)) as fetched:
            fetched.want(PARTS)
            check_arrays(fetched, PARTS)
            fetched.finish()
            total = sum((full.find(KEY, part) or pytest.fail(part)).file_bytes for part in PARTS)
            assert fetched.bytes_done == fetched.bytes_total == total
        asked = coordinator.tensors_asked
        assert len(asked) == len(set(asked))
    assert files_in(store) == sorted(f"{part}.safetensors" for part in PARTS)
    for part in PARTS:
        file = store.find(KEY, part)
        assert file is not None
        assert not file.damaged()


def test_peers_come_first_and_what_they_lack_comes_from_the_coordinator(full: LayerStore, tmp_path: Path) -> None:
    half = filled_store(tmp_path / "half", SOME[:2])
    with ExitStack() as stack:
        coordinator = stack.enter_context(WeightSource(COORDINATOR, full, DEVICE))
        peer = stack.enter_context(WeightSource("peer", half, DEVICE))
        fetched = stack.enter_context(closing(transfer([coordinator, peer], LayerStore(tmp_path / "own", GIB))))
        wait_for_peer(fetched, "peer")
        fetched.want(SOME)
        check_arrays(fetched, SOME)
        assert {part for part, _, _ in coordinator.tensors_asked} == {"head", "embedding"}
        assert fetched.bytes_from["peer"] > 0


def test_parts_that_the_cache_has_are_not_asked_for(full: LayerStore, tmp_path: Path) -> None:
    store = filled_store(tmp_path, SOME[:3])
    with WeightSource(COORDINATOR, full, DEVICE) as coordinator, closing(transfer([coordinator], store)) as fetched:
        fetched.want(SOME)
        check_arrays(fetched, SOME)
        assert {fetch.part for fetch in coordinator.asked} == {"model", "embedding"}


def flipped(reply: Reply) -> Reply:
    data = bytearray(reply.data)
    data[len(data) // 2] ^= 1
    return reply._replace(data=bytes(data))


def test_a_flipped_bit_is_refused_named_and_fetched_elsewhere(
    full: LayerStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def twist(fetch: Fetch, reply: Reply) -> Reply:
        return flipped(reply) if fetch.part == "layer-001" and reply.kind is ReplyKind.CHUNK else reply

    with ExitStack() as stack:
        coordinator = stack.enter_context(WeightSource(COORDINATOR, full, DEVICE))
        liar = stack.enter_context(WeightSource("liar", full, DEVICE, twist))
        fetched = stack.enter_context(closing(transfer([coordinator, liar], LayerStore(tmp_path, GIB))))
        wait_for_peer(fetched, "liar")
        with caplog.at_level(logging.WARNING, logger="agent.weight_transfer"):
            fetched.want(SOME)
            check_arrays(fetched, SOME)
        [record] = [record for record in caplog.records if record.msg == "weights_refused"]
        assert "layer-001" in record.problem
        assert "from liar does not match its digest" in record.problem
        assert coordinator.tensors_asked


def test_a_manifest_of_another_model_is_refused(full: LayerStore, tmp_path: Path) -> None:
    def twist(fetch: Fetch, reply: Reply) -> Reply:
        return reply._replace(data=bytes(reply.data).replace(b"silu", b"gelu")) if fetch.part == "model" else reply

    with (
        WeightSource(COORDINATOR, full, DEVICE, twist) as coordinator,
        pytest.raises(BadCheckpoint, match="it is of a model with digest"),
    ):
        transfer([coordinator], LayerStore(tmp_path, GIB))


def test_a_coordinator_whose_chunks_are_damaged_is_an_error_where_weights_are_awaited(
    full: LayerStore, tmp_path: Path
) -> None:
    def twist(fetch: Fetch, reply: Reply) -> Reply:
        return flipped(reply) if fetch.item else reply

    with (
        WeightSource(COORDINATOR, full, DEVICE, twist) as coordinator,
        closing(transfer([coordinator], LayerStore(tmp_path, GIB))) as fetched,
    ):
        fetched.want(["head"])
        with pytest.raises(WeightsUnavailable, match="the coordinator does not match its digest, 3 times"):
            check_arrays(fetched, ["head"])
    assert files_in(LayerStore(tmp_path, GIB)) == ["head.partial"]


def test_a_source_that_dies_is_replaced_by_another(full: LayerStore, tmp_path: Path) -> None:
    def twist(fetch: Fetch, reply: Reply) -> Reply | None:
        return reply if fetch.part == "layer-000" else None

    with ExitStack() as stack:
        coordinator = stack.enter_context(WeightSource(COORDINATOR, full, DEVICE))
        peer = WeightSource("peer", full, DEVICE, twist)
        stack.callback(peer.close)
        fetched = stack.enter_context(closing(transfer([coordinator, peer], LayerStore(tmp_path, GIB))))
        wait_for_peer(fetched, "peer")
        fetched.want(SOME)
        check_arrays(fetched, SOME[:1])
        while not any(part == "layer-001" for part, _, _ in peer.tensors_asked):
            time.sleep(0.01)
        peer.close()
        check_arrays(fetched, SOME)


def test_what_arrived_before_the_end_is_not_asked_again(full: LayerStore, tmp_path: Path) -> None:
    """A process that ends in the middle leaves partial files; the next one asks for the rest only."""
    store, given = LayerStore(tmp_path, GIB), threading.Semaphore(25)

    def twist(fetch: Fetch, reply: Reply) -> Reply | None:
        return reply if not fetch.item or given.acquire(blocking=False) else None

    with WeightSource(COORDINATOR, full, DEVICE, twist) as first:
        fetched = transfer([first], store)
        fetched.want(PARTS)
        while len(first.tensors_asked) <= 25:
            time.sleep(0.01)
        given_bytes = sum(fetch.length for fetch in [fetch for fetch in first.asked if fetch.item][:25])
        while fetched.bytes_done < given_bytes:
            time.sleep(0.01)
        fetched.close()
        before = first.tensors_asked[:25]
    with WeightSource(COORDINATOR, full, DEVICE) as second, closing(transfer([second], store)) as fetched:
        fetched.want(PARTS)
        check_arrays(fetched, PARTS)
        fetched.finish()
        assert len(second.tensors_asked) == len(set(second.tensors_asked))
        assert not set(before) & set(second.tensors_asked)
    assert files_in(store) == sorted(f"{part}.safetensors" for part in PARTS)


def test_partial_files_with_anything_wrong_in_them_are_found_out(full: LayerStore, tmp_path: Path) -> None:
    store = LayerStore(tmp_path, GIB)
    with WeightSource(COORDINATOR, full, DEVICE) as coordinator:
        for damage in (b"", b"x" * 100, b"\1" * (1 << 20)):
            store.partial(KEY, "head").write_bytes(damage)
            with closing(transfer([coordinator], store)) as fetched:
                fetched.want(["head"])
                check_arrays(fetched, ["head"])
                fetched.finish()
            (store.root / KEY.directory / "head.safetensors").unlink()


def test_a_full_disk_leaves_weights_in_memory(
    full: LayerStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = 100_000

    def pwrite(descriptor: int, data: memoryview | bytes, offset: int) -> int:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(descriptor, data, offset)

    store = LayerStore(tmp_path, GIB)
    with (
        WeightSource(COORDINATOR, full, DEVICE) as coordinator,
        closing(transfer([coordinator], store, pwrite=pwrite)) as fetched,
        caplog.at_level(logging.WARNING, logger="agent.weight_target"),
    ):
        fetched.want(SOME)
        check_arrays(fetched, SOME)
        fetched.finish()
    problems = [record.problem for record in caplog.records if record.msg == "part_in_memory"]
    assert problems
    assert set(problems) == {"No space left on device"}
    assert not [name for name in files_in(store) if name.endswith(".partial")]


def test_a_cache_without_room_leaves_weights_in_memory(full: LayerStore, tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 0)
    with (
        WeightSource(COORDINATOR, full, DEVICE) as coordinator,
        closing(transfer([coordinator], store)) as fetched,
    ):
        fetched.want(SOME)
        check_arrays(fetched, SOME)
        fetched.finish()
    assert files_in(store) == []


def test_whoever_waits_reports_and_can_end_the_wait(full: LayerStore, tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    reports: list[tuple[int, int]] = []

    def waiting(done: int, total: int) -> None:
        reports.append((done, total))
        if len(reports) > 7:
            raise Ended

    with (
        WeightSource(COORDINATOR, full, DEVICE, bytes_per_s=20_000) as coordinator,
        closing(Transfer(KEY, [coordinator.source], DEVICE, LayerStore(tmp_path, GIB), waiting)) as fetched,
    ):
        fetched.want(SOME)
        with pytest.raises(Ended):
            fetched.embedding()
        assert 0 < reports[-1][0] < reports[-1][1]


def test_a_rate_is_kept(full: LayerStore, tmp_path: Path) -> None:
    rate = 2_000_000
    with (
        WeightSource(COORDINATOR, full, DEVICE, bytes_per_s=rate) as coordinator,
        closing(transfer([coordinator], LayerStore(tmp_path, GIB))) as fetched,
    ):
        began_s = time.monotonic()
        fetched.want(PARTS)
        fetched.finish()
        seconds = time.monotonic() - began_s
        largest = max(fetch.length for fetch in coordinator.asked if fetch.item)
        assert fetched.bytes_total > 3 * largest
        assert seconds >= (fetched.bytes_total - largest) / rate - BURST_S


def test_without_a_coordinator_among_the_sources_nothing_is_believed(full: LayerStore, tmp_path: Path) -> None:
    with WeightSource("peer", full, DEVICE) as peer, pytest.raises(WeightsUnavailable, match="no manifest"):
        transfer([peer], LayerStore(tmp_path, GIB))


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://*:5580", "tcp://10.0.0.1:5580"),
        ("tcp://192.168.1.2:5580", "tcp://192.168.1.2:5580"),
        ("ipc:///tmp/x", "ipc:///tmp/x"),
    ],
)
def test_the_coordinators_host_is_the_one_this_device_knows(endpoint: str, expected: str) -> None:
    assert source_endpoint(BulkSource("", endpoint, ""), "tcp://10.0.0.1:5570") == expected
    assert source_endpoint(BulkSource("", "tcp://*:1", ""), "tcp://[fe80::1]:5570") == "tcp://[fe80::1]:1"


def test_a_device_takes_only_its_own_coordinator_for_the_coordinator(tmp_path: Path) -> None:
    """Whatever key a load names: manifests come from whoever has the key in this device's configuration."""
    real, other = generate_keys().public, generate_keys().public
    config = AgentConfig(name="d1", coordinator="tcp://10.0.0.1:5570", coordinator_key=real)
    sources = (
        BulkSource("", "tcp://*:5580", other),
        BulkSource("d1", "tcp://10.0.0.3:1", other),
        BulkSource("d2", "tcp://10.0.0.2:1", other),
    )
    request = Load("m", KEY.digest, ((0, 1),), "int4", 32, "fp16", 1, 64, sources)
    assert _sources(request, config) == [BulkSource("", "tcp://10.0.0.1:5580", real), sources[2]]


def test_a_peer_that_talks_nonsense_is_named_once_and_left(
    full: LayerStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def nonsense(_: Fetch, reply: Reply) -> Reply:
        return reply._replace(kind=ReplyKind.CHUNK, total_bytes=5, data=b"")

    with ExitStack() as stack:
        coordinator = stack.enter_context(WeightSource(COORDINATOR, full, DEVICE))
        peer = stack.enter_context(WeightSource("peer", full, DEVICE, nonsense))
        fetched = stack.enter_context(closing(transfer([coordinator, peer], LayerStore(tmp_path, GIB))))
        wait_for_peer(fetched, "peer")
        started_s = time.monotonic()
        fetched.want(SOME)
        check_arrays(fetched, SOME)
        assert time.monotonic() - started_s < SILENCE_S
        assert fetched._core.distrusted == ["peer"]
        assert fetched._core.bytes_from["peer"] == 0
    assert [record.message for record in caplog.records].count("bad_bulk_message") == 1


def test_a_model_that_we_cannot_run_is_named_as_that(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL_DIR, model)
    config = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mamba", "architectures": ["Mamba"]}))
    manifest, key = encode_manifest(model, None), replace(KEY, digest=model_digest(model))

    def other(fetch: Fetch, _: Reply) -> Reply:
        return bytes_of(manifest, fetch)

    store = LayerStore(tmp_path / "store", GIB)
    with WeightSource(COORDINATOR, store, DEVICE, other) as coordinator, pytest.raises(UnsupportedModel):
        Transfer(key, [coordinator.source], DEVICE, store, lambda done, total: None)
