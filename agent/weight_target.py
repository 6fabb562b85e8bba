"""Where a part lies while it is fetched: a file of the cache with a map of its chunks behind it, or memory.

    [header and tensors, as in the whole file][one byte per chunk: 1 it is there]

The tail is cut off when the part is complete. A process that starts again finds in it what need not be fetched again,
if the header is that of the manifest; where power failed between a chunk and its mark, the tensor's digest tells.
Memory is an anonymous file, so that both are written and mapped alike.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from agent.compute.kept_files import lock_file
from agent.compute.layer_file import LayerHeader
from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey
from agent.compute.safetensors_file import SafetensorsFile
from agent.errors import BadCheckpoint
from agent.wire.bulk import MAX_CHUNK_BYTES

logger = logging.getLogger(__name__)

Pwrite = Callable[[int, memoryview | bytes, int], int]
"""`os.pwrite`: a test passes one that runs out of room."""

MOST_OPENINGS = 8
"""Tries for a partial file that others rename or evict between its opening and its lock."""
MAX_PART_BYTES = 64 << 30
"""The largest embedding of a public model takes 8 GiB in fp32."""


class PartTarget:
    """One part on its way. One thread writes; arrays that were handed out stay valid whatever happens to the file."""

    def __init__(
        self, header: LayerHeader, key: PartKey, part: str, store: LayerStore, pwrite: Pwrite = os.pwrite
    ) -> None:
        """Raises OSError when there is neither a file nor memory for it, BadCheckpoint for a size that is absurd."""
        if header.file_bytes > MAX_PART_BYTES:
            raise BadCheckpoint(f"{key}: {part} of {header.file_bytes} bytes, at most {MAX_PART_BYTES}")
        self.header = header
        self.part = part
        self._key = key
        self._store = store
        self._pwrite = pwrite
        self._first: dict[str, int] = {}
        """Number of each tensor's first chunk, counted over the part."""
        count = 0
        for name, entry in header.entries.items():
            self._first[name] = count
            count += _chunks(entry.stop - entry.start)
        self._marks = bytearray(count)
        self._descriptor = -1
        self._path: Path | None = None
        """The partial file; None for memory."""
        try:
            try:
                self._open_file()
            except OSError as problem:
                self._to_memory(str(problem))
            self._mapped = self._map()
        except BaseException:
            self.close()
            raise

    @property
    def in_memory(self) -> bool:
        return self._path is None

    def have(self) -> dict[str, list[int]]:
        """Numbers of the chunks that are there, by tensor."""
        return {
            name: [number for number in range(self._count(name)) if self._marks[first + number]]
            for name, first in self._first.items()
        }

    def held_bytes(self) -> int:
        """About how much is there: whole chunks, but never more than all."""
        return min(sum(self._marks) * MAX_CHUNK_BYTES, self.header.file_bytes)

    def write(self, name: str, offset: int, data: memoryview | bytes) -> None:
        """Keep a chunk. When the disk is full the part goes on in memory. Raises OSError when that is full as well."""
        number = self._first[name] + offset // MAX_CHUNK_BYTES
        try:
            self._put(data, self.header.entries[name].start + offset)
            self._marks[number] = 1
            self._put(b"\1", self._marks_at + number)
        except OSError as problem:
            self._give_up_file(problem)
            self.write(name, offset, data)

    def forget(self, name: str) -> None:
        """A tensor's contents are wrong. Raises OSError as `write` does."""
        count, first = self._count(name), self._first[name]
        self._marks[first : first + count] = bytes(count)
        try:
            self._put(bytes(count), self._marks_at + first)
        except OSError as problem:  # a file system that writes elsewhere what it overwrites can be full for this too
            self._give_up_file(problem)

    def matches(self, name: str) -> bool:
        """Whether a tensor that is there has its digest."""
        found = hashlib.sha256(self._mapped.bytes_of(name)).hexdigest()
        return found == self.header.sha256[name]

    def array(self, name: str) -> NDArray[Any]:
        """Read-only view of a tensor that is there."""
        return self._mapped.array(name)

    def finish(self) -> None:
        """All tensors match: the file gets its name in the store. What cannot be kept is logged; arrays stay."""
        if self._path is not None:
            try:
                os.ftruncate(self._descriptor, self.header.file_bytes)
                self._store.adopt(self._key, self.part)
            except (OSError, BadCheckpoint) as problem:
                logger.warning("part_not_kept", extra={"file": str(self._path), "problem": str(problem)})
        self.close()

    def close(self) -> None:
        """Give up the lock; a partial file stays for the next time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # --- inside ---

    @property
    def _marks_at(self) -> int:
        return self.header.file_bytes

    def _count(self, name: str) -> int:
        entry = self.header.entries[name]
        return _chunks(entry.stop - entry.start)

    def _open_file(self) -> None:
        """The partial file, locked and with what is in it already. Raises OSError."""
        path = self._store.partial(self._key, self.part)
        self._open_locked(path)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, len(self.header.raw), 0) != self.header.raw:
            # Not cut: a process that fetched it before may have it mapped still.
            path.unlink()
            self.close()
            self._open_locked(path)
            size = os.fstat(self._descriptor).st_size
        if size < self.header.file_bytes and not self._store.make_room(self.header.file_bytes):
            path.unlink(missing_ok=True)
            raise OSError("it is beyond the limit of the cache")
        self._path = path
        head = os.pread(self._descriptor, len(self.header.raw), 0)
        if head == self.header.raw and size == self.header.file_bytes:
            self._marks = bytearray(b"\1" * len(self._marks))  # It ended between the cut and the new name.
        elif head == self.header.raw and size == self._whole:
            self._marks = bytearray(os.pread(self._descriptor, len(self._marks), self._marks_at))
        self._lay_out()

    def _open_locked(self, path: Path) -> None:
        """Raises OSError: for a file that another process writes, or that is none."""
        for _ in range(MOST_OPENINGS):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if not lock_file(self._descriptor):
                raise OSError("another process is fetching it")
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{path} is not a regular file")
            # Before the lock it may have been evicted, or become somebody's whole part, which nobody writes to.
            if path.exists() and path.stat().st_ino == status.st_ino:
                return
            self.close()
        raise OSError(f"{path} comes and goes")

    @property
    def _whole(self) -> int:
        return self._marks_at + len(self._marks)

    def _lay_out(self) -> None:
        os.ftruncate(self._descriptor, self._whole)
        self._put(self.header.raw, 0)
        self._put(bytes(self._marks), self._marks_at)

    def _give_up_file(self, problem: OSError) -> None:
        """Raises `problem` when this is memory already."""
        if self.in_memory:
            raise problem
        self._to_memory(problem.strerror or str(problem))
        self._mapped = self._map()

    def _to_memory(self, problem: str) -> None:
        """Go on in an anonymous file with what is there."""
        logger.warning("part_in_memory", extra={"part": f"{self._key}: {self.part}", "problem": problem})
        before, path = self._descriptor, self._path
        self._descriptor, self._path = os.memfd_create(f"part-{self.part}"), None
        self._pwrite = os.pwrite
        self._lay_out()
        for name, chunks in self.have().items() if path is not None else ():
            for number in chunks:
                entry = self.header.entries[name]
                start = entry.start + number * MAX_CHUNK_BYTES
                self._put(os.pread(before, min(MAX_CHUNK_BYTES, entry.stop - start), start), start)
        if before >= 0:
            os.close(before)
        if path is not None:
            path.unlink(missing_ok=True)

    def _map(self) -> SafetensorsFile:
        return SafetensorsFile(self._path or Path(f"/proc/self/fd/{self._descriptor}"))

    def _put(self, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data`. Raises OSError."""
        view = memoryview(data)
        while view:
            count = self._pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count


def _chunks(size_bytes: int) -> int:
    return -(-size_bytes // MAX_CHUNK_BYTES)
