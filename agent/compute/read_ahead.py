"""Has the kernel read files that are needed soon, in order, while those before them are being packed.

Only a window beyond what is in use: pages read too early would be pushed out again on a device short of memory.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

WINDOW_BYTES = 768 << 20
"""As much as a block of layers holds at most: the next is read while the present one is packed."""

ASK_BYTES = 4 << 20
"""Asked for at once. The kernel reads no more than its own read-ahead limit for one call, often less than a file."""

ASKED = 4
"""Pieces under way: enough to keep a disk busy, few enough that other reads need not queue for long."""


class Expected(NamedTuple):
    """A file that will be needed."""

    path: Path
    first_bytes: int
    """Its beginning, needed before anything of the files that follow it in the window."""
    size_bytes: int


class ReadAhead:
    """Files in the order of their use. Nothing waits here: the asking has a thread of its own."""

    def __init__(self, files: Iterable[Expected], window_bytes: int = WINDOW_BYTES) -> None:
        """Begins with the files that lie in the first `window_bytes`."""
        self._left = deque(files)
        self._ends_bytes: dict[Path, int] = {}
        total_bytes = 0
        for file in self._left:
            total_bytes += file.size_bytes
            self._ends_bytes[file.path] = total_bytes
        self._window_bytes = window_bytes
        self._asker = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ask(0)

    @property
    def left(self) -> tuple[Expected, ...]:
        """Files not asked for yet."""
        return tuple(self._left)

    def reached(self, path: Path) -> None:
        """`path` is in use now; a file that is not among those of the beginning changes nothing."""
        self._ask(self._ends_bytes.get(path, 0))

    def _ask(self, used_bytes: int) -> None:
        asked = []
        while self._left and self._ends_bytes[self._left[0].path] <= used_bytes + self._window_bytes:
            asked.append(self._left.popleft())
        if asked:
            self._asker.submit(_read, tuple(asked))


def _read(files: tuple[Expected, ...]) -> None:
    """Bring the beginnings of all `files` into the page cache, then the rest of each."""
    pieces = [(file.path, 0, file.first_bytes) for file in files]
    pieces += [
        (file.path, start, min(ASK_BYTES, file.size_bytes - start))
        for file in files
        for start in range(file.first_bytes, file.size_bytes, ASK_BYTES)
    ]
    under_way: deque[tuple[Path, int]] = deque()
    for path, start, size_bytes in pieces:
        if size_bytes and _touch(path, start, size_bytes):
            under_way.append((path, start + size_bytes - 1))
        if len(under_way) > ASKED:
            _touch(*under_way.popleft(), 0)
    for path, last in under_way:
        _touch(path, last, 0)


def _touch(path: Path, start: int, size_bytes: int) -> bool:
    """Ask for a piece of a file, or wait until its byte `start` is there if `size_bytes` is 0."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if size_bytes:
                os.posix_fadvise(descriptor, start, size_bytes, os.POSIX_FADV_WILLNEED)
            else:
                os.pread(descriptor, 1, start)
        finally:
            os.close(descriptor)
    except OSError as problem:  # then it is read when it is used, only later
        logger.debug("not_read_ahead", extra={"file": str(path), "problem": str(problem)})
        return False
    return True
