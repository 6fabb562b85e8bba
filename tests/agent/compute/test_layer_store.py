from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.compute.kept_files import lock_file
from agent.compute.layer_file import LayerFile, write_layer_file
from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey
from agent.errors import BadCheckpoint

KEY = PartKey("0" * 64, "int4", 32, "fp32")
OTHER = PartKey("0" * 64, "int4", 128, "fp32")
ARRAYS: dict[str, NDArray[Any]] = {
    "a.q": np.arange(256, dtype=np.uint8).reshape(4, 64),
    "a.s": np.linspace(0, 1, 4, dtype=np.float32).reshape(4, 1),
}
LIMIT_BYTES = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "layers", LIMIT_BYTES)


def write(store: LayerStore, part: str = "layer-000", key: PartKey = KEY) -> Path:
    """The path of a part that was written; nobody uses it."""
    file = store.write(key, part, ARRAYS)
    assert file is not None
    return file.path


def holds_what_was_written(file: LayerFile | None) -> bool:
    return file is not None and all(np.array_equal(file.array(name), array) for name, array in ARRAYS.items())


def rewrite(path: Path, data: bytes) -> None:
    """As a disk error or a careless copy would: in place, times as they were."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def names(store: LayerStore) -> set[str]:
    return {path.name for path in store.root.glob("*/*/*")}


def test_what_was_written_is_found_by_another_process_too(store: LayerStore) -> None:
    assert store.find(KEY, "layer-000") is None
    write(store)
    assert holds_what_was_written(LayerStore(store.root, LIMIT_BYTES).find(KEY, "layer-000"))
    assert store.find(KEY, "layer-001") is None
    assert store.find(OTHER, "layer-000") is None
    assert names(store) == {"layer-000.safetensors", "layer-000.mark"}


def test_contents_are_hashed_only_after_somebody_touched_the_file(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(store)
    checks: list[Path] = []
    verify = LayerFile.verify

    def watched(file: LayerFile) -> None:
        checks.append(file.path)
        verify(file)

    monkeypatch.setattr(LayerFile, "verify", watched)
    for _ in range(3):
        assert store.find(KEY, "layer-000") is not None
    assert checks == []
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)
    for _ in range(3):
        assert holds_what_was_written(store.find(KEY, "layer-000"))
    assert checks == [path]


def test_no_damaged_byte_is_ever_used(store: LayerStore, caplog: pytest.LogCaptureFixture) -> None:
    path = write(store)
    whole = path.read_bytes()
    random = np.random.default_rng(5)
    places = {0, 7, 8, len(whole) - 1, *random.integers(0, len(whole), 50).tolist()}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        rewrite(path, bytes(damaged))
        caplog.clear()
        found = store.find(KEY, "layer-000")
        if found is None:
            assert str(path) in str(caplog.records[-1].__dict__)
            assert not path.exists(), "deleted"
        else:
            assert holds_what_was_written(found), place
        write(store)
        rewrite(path, whole)


@pytest.mark.parametrize("change", ["cut", "cut to a page", "cut to nothing", "longer", "no file of ours"])
def test_a_file_of_another_size_is_deleted_without_reading_it(store: LayerStore, change: str) -> None:
    path = write(store)
    whole = path.read_bytes()
    changed = {
        "cut": whole[:-1],
        "cut to a page": whole[:512],
        "cut to nothing": b"",
        "longer": whole + b"\0",
        "no file of ours": b"\xff" * 4096,
    }
    rewrite(path, changed[change])
    assert store.find(KEY, "layer-000") is None
    assert names(store) == set()


def test_a_file_that_cannot_be_opened_now_is_left_alone(store: LayerStore) -> None:
    write(store)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    for allowed in (free, free + 1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
        try:
            assert store.find(KEY, "layer-000") is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert holds_what_was_written(store.find(KEY, "layer-000"))


def test_swapped_files_are_found_out(store: LayerStore) -> None:
    first, second = write(store, "layer-000"), write(store, "layer-001")
    elsewhere = write(store, "layer-001", OTHER)
    shutil.copy2(second, first)
    assert store.find(KEY, "layer-000") is None
    os.replace(elsewhere, second)
    assert store.find(KEY, "layer-001") is None


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    room = [700]

    def write_some(descriptor: int, data: memoryview) -> int:
        """As a disk with 700 bytes left: writes what fits, then fails."""
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = os.write(descriptor, data[: room[0]])
        room[0] -= size
        return size

    store = LayerStore(tmp_path, LIMIT_BYTES, write_some)
    assert store.write(KEY, "layer-000", ARRAYS) is None
    assert names(store) == set()
    assert "No space left" in str(caplog.records[-1].__dict__)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_is_full_in_fact(small_disk: Path) -> None:
    store = LayerStore(small_disk / "layers", 1 << 30)
    write(store)
    large = {"a.q": np.zeros(60 << 10, np.uint8)}
    assert store.write(KEY, "layer-001", large) is None
    assert names(store) == {"layer-000.safetensors", "layer-000.mark"}
    assert holds_what_was_written(store.find(KEY, "layer-000"))


def test_a_read_only_disk_is_read(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = LayerStore(small_disk, LIMIT_BYTES)
    mark = write(store).with_suffix(".mark")
    for has_mark in (True, False):
        mark.unlink() if not has_mark else None
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        try:
            assert holds_what_was_written(store.find(KEY, "layer-000"))
            assert store.write(KEY, "layer-001", ARRAYS) is None
            assert "Read-only" in str(caplog.records[-1].__dict__)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)


def test_a_root_that_cannot_be_made_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LayerStore(tmp_path / "file", LIMIT_BYTES)
    assert store.write(KEY, "layer-000", ARRAYS) is None
    assert caplog.records[-1].levelno == logging.WARNING
    assert store.find(KEY, "layer-000") is None


class TestLimit:
    def test_parts_and_their_marks_stay_within_it(self, tmp_path: Path) -> None:
        size = write(LayerStore(tmp_path / "probe", LIMIT_BYTES)).stat().st_size
        store = LayerStore(tmp_path / "layers", 3 * size + 8192)
        for number in range(9):
            write(store, f"layer-{number:03d}")
            kept = {Path(name).stem for name in names(store) if name.endswith(".safetensors")}
            assert f"layer-{number:03d}" in kept
            assert len(kept) * size <= store.limit_bytes
            assert {Path(name).stem for name in names(store)} == kept, "no mark outlives its file"

    def test_order_of_eviction_is_order_of_use(self, tmp_path: Path) -> None:
        store = LayerStore(tmp_path, LIMIT_BYTES)
        order = [3, 0, 2, 1]
        paths = [write(store, f"layer-{number:03d}") for number in range(4)]
        for used, number in enumerate(order):
            os.utime(paths[number].with_suffix(".mark"), (used + 1, used + 1))
        size = paths[0].stat().st_size
        for gone in range(1, 5):
            tight = LayerStore(tmp_path, (4 - gone) * size + 10)
            assert tight.make_room(10)
            assert [number for number in order if not paths[number].exists()] == order[:gone]

    def test_what_is_in_use_stays(self, tmp_path: Path) -> None:
        size = write(LayerStore(tmp_path / "probe", LIMIT_BYTES)).stat().st_size
        store = LayerStore(tmp_path / "layers", 2 * size + 8192)
        write(store, "layer-000")
        used = store.find(KEY, "layer-000")
        for number in range(1, 9):
            store.write(KEY, f"layer-{number:03d}", ARRAYS)
        assert used is not None
        assert used.path.exists()
        assert not LayerStore(store.root, size).make_room(size)
        del used
        assert LayerStore(store.root, size).make_room(size)
        assert names(store) == set()

    def test_nothing_is_kept_beyond_the_limit_or_with_none(self, tmp_path: Path) -> None:
        for limit_bytes in (0, 100):
            store = LayerStore(tmp_path, limit_bytes)
            assert store.write(KEY, "layer-000", ARRAYS) is None
            assert names(store) == set()


def test_a_writer_that_died_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    program = f"""
import os, sys
import numpy as np
from pathlib import Path
from agent.compute import layer_store
from agent.compute.part import PartKey
os.replace = lambda *paths: os._exit(9)  # power fails between writing and renaming
store = layer_store.LayerStore(Path({str(tmp_path)!r}), 1 << 20)
store.write(PartKey("0" * 64, "int4", 32, "fp32"), "layer-000", {{"a.q": np.zeros(500, np.uint8)}})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    store = LayerStore(tmp_path, LIMIT_BYTES)
    assert [Path(name).suffix for name in names(store)] == [".tmp"]
    assert store.find(KEY, "layer-000") is None
    write(store)
    assert names(store) == {"layer-000.safetensors", "layer-000.mark"}, "swept"


def test_processes_that_write_the_same_parts_at_once(tmp_path: Path) -> None:
    program = f"""
import sys
import numpy as np
from pathlib import Path
from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey
store, key = LayerStore(Path({str(tmp_path)!r}), 60_000), PartKey("0" * 64, "int4", 32, "fp32")
sys.stdin.readline()
for round in range(24):
    part = f"layer-{{round % 5:03d}}"
    content = np.full(9000, round % 5, np.uint8)
    file = store.write(key, part, {{"a.q": content}}) if round % 3 else store.find(key, part)
    assert file is None or (file.array("a.q") == content).all()
"""
    writers = [subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        writer.communicate(b"\n", timeout=30)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert not [name for name in names(LayerStore(tmp_path, 1)) if name.endswith(".tmp")]


class TestFetched:
    def fetch(self, store: LayerStore, part: str = "layer-000") -> Path:
        path = store.partial(KEY, part)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        write_layer_file(descriptor, KEY, part, ARRAYS, os.write)
        os.close(descriptor)
        return path

    def test_a_whole_one_gets_its_name(self, store: LayerStore) -> None:
        partial = self.fetch(store)
        assert store.find(KEY, "layer-000") is None
        assert holds_what_was_written(store.adopt(KEY, "layer-000"))
        assert holds_what_was_written(store.find(KEY, "layer-000"))
        assert not partial.exists()

    def test_a_damaged_one_is_refused_by_tensor(self, store: LayerStore) -> None:
        partial = self.fetch(store)
        data = partial.read_bytes()
        partial.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BadCheckpoint, match=r"contents of a\.q"):
            store.adopt(KEY, "layer-000")
        assert names(store) == set()

    def test_one_for_another_part_is_refused(self, store: LayerStore) -> None:
        os.replace(self.fetch(store, "layer-001"), store.partial(KEY, "layer-000"))
        with pytest.raises(BadCheckpoint, match="part is 'layer-001', expected 'layer-000'"):
            store.adopt(KEY, "layer-000")

    def test_one_that_is_being_fetched_is_not_evicted(self, store: LayerStore) -> None:
        partial = self.fetch(store)
        tight = LayerStore(store.root, 100)
        descriptor = os.open(partial, os.O_RDWR)
        assert lock_file(descriptor)
        assert not tight.make_room(100)
        os.close(descriptor)
        assert tight.make_room(100)
        assert not partial.exists()


@pytest.mark.parametrize("part", ["../../../etc/passwd", "layer-000/../../x", "layer-1", ""])
def test_no_part_leads_outside(store: LayerStore, part: str) -> None:
    for call in (store.find, store.partial, store.adopt):
        with pytest.raises(ValueError, match="no part"):
            call(KEY, part)
