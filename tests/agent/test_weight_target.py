"""A part on its way: what is written can be read, survives the process, and goes on in memory when the disk is full."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.compute.layer_file import LayerFile
from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey
from agent.errors import BadCheckpoint
from agent.weight_target import MAX_PART_BYTES, PartTarget
from agent.wire.bulk import MAX_CHUNK_BYTES

KEY = PartKey("0" * 64, "int4", 32, "fp32")
PART = "layer-000"
CHUNK = MAX_CHUNK_BYTES
ARRAYS = {
    "large": np.random.default_rng(0).integers(0, 256, (5, CHUNK // 2), np.uint8),
    "small": np.arange(7, dtype=np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LayerFile:
    file = LayerStore(tmp_path_factory.mktemp("whole"), 1 << 30).write(KEY, PART, ARRAYS)
    assert file is not None
    return file


def chunks(whole: LayerFile) -> list[tuple[str, int]]:
    return [
        (name, offset)
        for name, entry in whole.header.entries.items()
        for offset in range(0, entry.stop - entry.start, CHUNK)
    ]


def put(target: PartTarget, whole: LayerFile, name: str, offset: int) -> None:
    entry = whole.header.entries[name]
    data = whole.path.read_bytes()[entry.start + offset : min(entry.stop, entry.start + offset + CHUNK)]
    target.write(name, offset, data)


def check_whole(target: PartTarget) -> None:
    for name, array in ARRAYS.items():
        assert target.matches(name)
        assert np.array_equal(target.array(name), array)


@pytest.mark.parametrize("seed", range(5))
def test_chunks_in_any_order_over_several_processes_make_the_file(whole: LayerFile, tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    store = LayerStore(tmp_path, 1 << 30)
    todo = chunks(whole)
    random_.shuffle(todo)
    while todo:
        target = PartTarget(whole.header, KEY, PART, store)
        there = {(name, number * CHUNK) for name, numbers in target.have().items() for number in numbers}
        assert there == set(chunks(whole)) - set(todo)
        for name, offset in [todo.pop() for _ in range(random_.randint(1, len(todo)))]:
            put(target, whole, name, offset)
        if todo:
            target.close()
    check_whole(target)
    arrays = {name: target.array(name) for name in ARRAYS}
    target.finish()
    found = store.find(KEY, PART)
    assert found is not None
    assert found.path.read_bytes() == whole.path.read_bytes()
    for name, array in ARRAYS.items():
        assert np.array_equal(arrays[name], array)
    assert [path.suffix for path in (tmp_path / KEY.directory).iterdir() if path.suffix == ".partial"] == []


def test_one_process_at_a_time_writes_the_file(whole: LayerFile, tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    first, second = (PartTarget(whole.header, KEY, PART, store) for _ in range(2))
    assert (first.in_memory, second.in_memory) == (False, True)
    for name, offset in chunks(whole):
        put(second, whole, name, offset)
    check_whole(second)
    assert first.have()["large"] == []


def test_a_tensor_that_is_forgotten_is_gone_after_a_restart_too(whole: LayerFile, tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    target = PartTarget(whole.header, KEY, PART, store)
    for name, offset in chunks(whole):
        put(target, whole, name, offset)
    target.write("small", 0, b"\xff" * 28)
    assert not target.matches("small")
    target.forget("small")
    target.close()
    again = PartTarget(whole.header, KEY, PART, store)
    assert again.have() == {"large": [0, 1, 2], "small": [], "empty": []}


def test_another_manifest_starts_anew(whole: LayerFile, tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    target = PartTarget(whole.header, KEY, PART, store)
    put(target, whole, "large", 0)
    target.close()
    changed = {**ARRAYS, "small": ARRAYS["small"] + 1}
    other = LayerStore(tmp_path / "other", 1 << 30).write(KEY, PART, changed)
    assert other is not None
    assert PartTarget(other.header, KEY, PART, store).have()["large"] == []


@pytest.mark.parametrize("room", [0, 100, 5000, CHUNK, 2 * CHUNK + 9000])
def test_a_disk_that_fills_up_costs_nothing_that_was_there(whole: LayerFile, tmp_path: Path, room: int) -> None:
    left = room

    def pwrite(descriptor: int, data: memoryview | bytes, offset: int) -> int:
        nonlocal left
        count = min(left, len(data))
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= count
        return os.pwrite(descriptor, data[:count], offset)

    store = LayerStore(tmp_path, 1 << 30)
    target = PartTarget(whole.header, KEY, PART, store, pwrite)
    for name, offset in chunks(whole):
        put(target, whole, name, offset)
    assert target.in_memory
    check_whole(target)
    target.finish()
    assert store.find(KEY, PART) is None
    assert not list(tmp_path.rglob("*.partial"))


def test_beyond_the_limit_of_the_cache_it_is_memory(whole: LayerFile, tmp_path: Path) -> None:
    target = PartTarget(whole.header, KEY, PART, LayerStore(tmp_path, 1000))
    for name, offset in chunks(whole):
        put(target, whole, name, offset)
    check_whole(target)
    assert target.in_memory
    assert not list(tmp_path.rglob("*.partial"))


def test_a_size_that_is_absurd_is_refused(whole: LayerFile, tmp_path: Path) -> None:
    entry = next(iter(whole.header.entries.values()))
    entries = {"large": entry._replace(stop=MAX_PART_BYTES + 1)}
    with pytest.raises(BadCheckpoint, match="layer-000 of 68719476737 bytes"):
        PartTarget(replace(whole.header, entries=entries), KEY, PART, LayerStore(tmp_path, 1 << 30))
