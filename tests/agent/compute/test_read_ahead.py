from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from agent.compute.read_ahead import Expected, ReadAhead

MIB = 1 << 20


def cached_share(path: Path) -> float:
    """Share of a file's pages that lie in the page cache, as the kernel says."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        address = ctypes.c_void_p(view.ctypes.data)
        result = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), pages.ctypes.data_as(ctypes.c_void_p))
        del view
        assert result == 0
        return float(np.mean(pages & 1))


def cold_file(path: Path, size_bytes: int) -> Expected:
    path.write_bytes(os.urandom(size_bytes))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(path) > 0:
        pytest.skip("this file system keeps its pages")
    return Expected(path, min(size_bytes, 64 << 10), size_bytes)


def wait(ahead: ReadAhead) -> None:
    ahead._asker.shutdown(wait=True)


def test_files_in_the_window_are_read_and_no_others(tmp_path: Path) -> None:
    files = [cold_file(tmp_path / str(number), 10 * MIB) for number in range(3)]
    ahead = ReadAhead(files, window_bytes=20 * MIB)
    assert ahead.left == (files[2],)
    wait(ahead)
    assert [cached_share(file.path) for file in files] == [1, 1, 0]


def test_what_is_in_use_lets_the_window_move_on(tmp_path: Path) -> None:
    files = [cold_file(tmp_path / str(number), MIB) for number in range(4)]
    ahead = ReadAhead(files, window_bytes=MIB)
    left = [len(ahead.left)]
    for file in files:
        ahead.reached(file.path)
        left.append(len(ahead.left))
    assert left == [3, 2, 1, 0, 0]
    ahead.reached(tmp_path / "another")
    wait(ahead)
    assert [cached_share(file.path) for file in files] == [1, 1, 1, 1]


def test_a_file_that_went_is_no_reason_to_stop(tmp_path: Path) -> None:
    file = cold_file(tmp_path / "there", 9 * MIB)
    ahead = ReadAhead([Expected(tmp_path / "gone", 10, MIB), file])
    wait(ahead)
    assert cached_share(file.path) == 1
