"""A part on its way: what is written can be read, survives the process, and goes on in memory when the disk is full."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent import weight_target
from agent.compute.kept_files import lock_file
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


def test_another_manifest_takes_nothing_from_who_still_reads_the_first_ones(whole: LayerFile, tmp_path: Path) -> None:
    """A part that could not get its name: unlocked, and mapped as long as its model is loaded."""
    store = LayerStore(tmp_path, 1 << 30)
    target = PartTarget(whole.header, KEY, PART, store)
    for name, offset in chunks(whole):
        put(target, whole, name, offset)
    target.close()
    other = LayerStore(tmp_path / "other", 1 << 30).write(KEY, PART, {"a": np.zeros(1 << 16, np.uint8)})
    assert other is not None
    second = PartTarget(other.header, KEY, PART, store)
    second.write("a", 0, bytes(1 << 16))
    assert second.matches("a")
    check_whole(target)


def test_a_file_that_gets_its_name_before_it_is_locked_is_not_written_to(
    whole: LayerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    partial = store.partial(KEY, PART)
    partial.write_bytes(whole.path.read_bytes())
    named = partial.with_suffix(".safetensors")

    def late(descriptor: int) -> bool:
        if not named.exists():
            partial.rename(named)
        return lock_file(descriptor)

    monkeypatch.setattr(weight_target, "lock_file", late)
    target = PartTarget(whole.header, KEY, PART, store)
    assert target.have()["large"] == []
    assert not target.in_memory
    assert named.read_bytes() == whole.path.read_bytes()


def test_a_file_that_comes_and_goes_is_not_waited_for(
    whole: LayerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    partial = store.partial(KEY, PART)
    open_before = len(os.listdir("/proc/self/fd"))

    def evicted(_: int) -> bool:
        partial.unlink()
        return True

    monkeypatch.setattr(weight_target, "lock_file", evicted)
    target = PartTarget(whole.header, KEY, PART, store)
    assert target.in_memory
    target.close()
    del target
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.timeout(20)
def test_what_is_no_file_is_left_alone(whole: LayerFile, tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    partial = store.partial(KEY, PART)
    os.mkfifo(partial)
    target = PartTarget(whole.header, KEY, PART, store)
    for name, offset in chunks(whole):
        put(target, whole, name, offset)
    target.finish()
    check_whole(target)
    assert partial.is_fifo()


def test_a_disk_without_room_for_a_correction_costs_nothing_else(whole: LayerFile, tmp_path: Path) -> None:
    is_full = False

    def pwrite(descriptor: int, data: memoryview | bytes, offset: int) -> int:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(descriptor, data, offset)

    target = PartTarget(whole.header, KEY, PART, LayerStore(tmp_path, 1 << 30), pwrite)
    for name, offset in chunks(whole):
        put(target, whole, name, offset)
    is_full = True
    target.forget("small")
    assert target.in_memory
    assert target.have() == {"large": [0, 1, 2], "small": [], "empty": []}
    put(target, whole, "small", 0)
    check_whole(target)
