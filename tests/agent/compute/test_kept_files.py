"""What is not ours in the cache's directory: never waited for, never deleted, and no condition for what is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from agent.compute import kept_files
from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey

KEY = PartKey("0" * 64, "int4", 32, "fp32")
ARRAYS = {"a.q": np.arange(256, dtype=np.uint8)}
LIMIT_BYTES = 1 << 20

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "layers", LIMIT_BYTES)


def write(store: LayerStore, part: str = "layer-000") -> Path:
    file = store.write(KEY, part, ARRAYS)
    assert file is not None
    return file.path


@pytest.mark.parametrize("suffix", [".safetensors", ".mark", ".tmp", ".partial"])
def test_nobody_waits_for_the_writer_of_a_pipe(store: LayerStore, suffix: str) -> None:
    path = write(store).with_suffix(suffix)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    found = store.find(KEY, "layer-000")
    assert (found is None) == (suffix == ".safetensors")
    assert LayerStore(store.root, 10_000).make_room(10_000 - 5_000 * (found is not None))
    assert store.write(KEY, "layer-000", ARRAYS) is not None


def test_a_directory_in_the_place_of_a_part_is_left_alone(store: LayerStore) -> None:
    path = write(store)
    path.unlink()
    path.mkdir()
    assert store.find(KEY, "layer-000") is None
    assert store.write(KEY, "layer-000", ARRAYS) is None
    assert store.make_room(LIMIT_BYTES)
    assert path.is_dir()


@pytest.mark.parametrize("place", ["link", "0" * 64, f"{'0' * 64}/int4-32-fp32-v1", "models"])
def test_eviction_takes_nothing_that_is_not_a_part_of_the_cache(store: LayerStore, tmp_path: Path, place: str) -> None:
    model = tmp_path / "models" / "llama" / "blobs" / "model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(bytes(1000))
    link = store.root / place
    link.parent.mkdir(parents=True)
    if place == "models":
        model.parent.parent.rename(link)
        model = link / "blobs" / "model.safetensors"
    else:
        link.symlink_to(model.parent if "/" in place else model.parent.parent)
    assert store.make_room(LIMIT_BYTES)
    assert model.exists()


def test_a_link_to_a_file_elsewhere_is_no_reason_to_delete_it(store: LayerStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "precious"
    write(store).rename(elsewhere)
    (store.root / KEY.directory / "layer-000.safetensors").symlink_to(elsewhere)
    assert store.make_room(LIMIT_BYTES)
    assert elsewhere.exists()


def test_what_another_process_evicted_first_is_gone_too(store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, "layer-000")
    write(store, "layer-001")
    remove = kept_files.remove_unused

    def raced(path: Path) -> bool:
        path.unlink()
        return remove(path)

    monkeypatch.setattr(kept_files, "remove_unused", raced)
    assert store.make_room(LIMIT_BYTES)


def test_a_part_that_is_about_to_be_deleted_is_not_given_out(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(store)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert store.find(KEY, "layer-000") is None
    os.close(descriptor)
    assert store.find(KEY, "layer-000") is not None
    lock = kept_files.is_shared

    def late(descriptor: int) -> bool:
        """Between opening and locking, the file goes."""
        LayerStore(store.root, 1).make_room(1)
        return lock(descriptor)

    monkeypatch.setattr(kept_files, "is_shared", late)
    assert store.find(KEY, "layer-000") is None


def test_a_part_under_way_has_no_mark_of_its_own(store: LayerStore) -> None:
    mark = write(store).with_suffix(".mark")
    partial = store.partial(KEY, "layer-000")
    partial.write_bytes(b"x")
    os.utime(partial, (1, 1))
    kept_files.remove(partial)
    assert not partial.exists()
    assert mark.exists()
