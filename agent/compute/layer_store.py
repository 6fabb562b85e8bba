"""The cache of parts on disk: one file per model digest, rendering and part, shared by every process of a device.

A file is complete before it gets its name: written beside, flushed to the disk, renamed. Contents are checked against
their sha256 when a file is written or adopted, and again only if the file was touched since: beside each lies a mark
with the size, times and inode it had then. That, and the header, is what a start relies on. What is in use is locked
(shared) and stays; beyond the limit the longest unused goes first. The cache is a help, never a condition: whatever
goes wrong is logged, and the part is made or fetched again.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from agent.compute.kept_files import (
    MARK,
    PARTIAL,
    TEMPORARY,
    WHOLE,
    beside,
    is_evicted,
    is_marked,
    mark_checked,
    new_temporary,
    open_part,
    remove,
    remove_unused,
)
from agent.compute.layer_file import LayerFile, Write, file_bytes, sync_directory, write_layer_file
from agent.compute.part import PartKey, check_part
from agent.errors import BadCheckpoint

logger = logging.getLogger(__name__)

Array = NDArray[Any]

_MODEL_DIRECTORY = re.compile(r"[0-9a-f]{64}")


class LayerStore:
    """Parts below `root`, `limit_bytes` at most; 0 keeps none. Any thread, any number of processes."""

    def __init__(self, root: Path, limit_bytes: int, write: Write = os.write) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self._write = write

    def find(self, key: PartKey, part: str) -> LayerFile | None:
        """The file of a part, locked against eviction as long as the object lives; None when there is none.

        A damaged file is named in the log and deleted.
        """
        path = self._path(key, part)
        try:
            file = open_part(path, key, part)
            if file is None:
                return None
            if not is_marked(path):
                file.verify()
                mark_checked(path)
        except BadCheckpoint as problem:
            is_damaged = not isinstance(problem.__cause__, OSError)  # else it may be read another time
            logger.warning(
                "part_damaged" if is_damaged else "part_unreadable", extra={"file": str(path), "problem": str(problem)}
            )
            if is_damaged:
                remove(path)
            return None
        with suppress(OSError):
            os.utime(beside(path, MARK))
        return file

    def write(self, key: PartKey, part: str, arrays: Mapping[str, Array]) -> LayerFile | None:
        """Keep a part that was made here. None, and a line in the log, when it cannot be kept."""
        path = self._path(key, part)
        try:
            if not self.make_room(file_bytes(arrays)):
                return None
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = new_temporary(path)
            try:
                write_layer_file(descriptor, key, part, arrays, self._write)
                os.fsync(descriptor)
                os.replace(temporary, path)
            finally:
                os.close(descriptor)
                with suppress(OSError):
                    temporary.unlink()
            sync_directory(path.parent)
            mark_checked(path)
            return open_part(path, key, part)
        except (OSError, BadCheckpoint) as problem:
            logger.warning("part_not_cached", extra={"file": str(path), "problem": str(problem)})
            return None

    def partial(self, key: PartKey, part: str) -> Path:
        """Where to write a part that is being fetched, for `adopt`; what is there already is from an earlier try.

        Its directory is made. Hold an exclusive lock (`lock_file`) while writing: it keeps out other processes and
        eviction. Raises OSError when the directory cannot be made.
        """
        path = self._path(key, part)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return beside(path, PARTIAL)

    def adopt(self, key: PartKey, part: str) -> LayerFile:
        """Give a fetched part its name.

        Raises OSError, and BadCheckpoint naming what is damaged: the partial file is deleted then.
        """
        partial, path = self.partial(key, part), self._path(key, part)
        try:
            LayerFile(partial, key, part).verify()
        except BadCheckpoint:
            remove(partial)
            raise
        descriptor = os.open(partial, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
        sync_directory(path.parent)
        mark_checked(path)
        return LayerFile(path, key, part)

    def make_room(self, size_bytes: int) -> bool:
        """Evict the longest unused until `size_bytes` more fit; False, and a line in the log, when they never will."""
        kept = sorted(self._kept(), key=lambda kept: kept.used_ns)
        used_bytes = sum(entry.size_bytes for entry in kept)
        if size_bytes <= self.limit_bytes:
            for entry in kept:
                if used_bytes + size_bytes <= self.limit_bytes:
                    break
                if is_evicted(entry.path):
                    used_bytes -= entry.size_bytes
        fits = used_bytes + size_bytes <= self.limit_bytes
        if not fits and self.limit_bytes:
            in_use = {"limit_bytes": self.limit_bytes, "in_use_bytes": used_bytes, "wanted_bytes": size_bytes}
            logger.warning("cache_full", extra=in_use)
        return fits

    def _path(self, key: PartKey, part: str) -> Path:
        return self.root / key.directory / (check_part(part) + WHOLE)

    def _kept(self) -> Iterator[_Kept]:
        """Whole and partial files; what a process that died was writing is deleted."""
        for path in self._files():
            with suppress(OSError):
                status = path.lstat()
                if path.suffix == TEMPORARY:
                    remove_unused(path)
                elif path.suffix in (WHOLE, PARTIAL) and stat.S_ISREG(status.st_mode):
                    mark = beside(path, MARK)
                    used_ns = mark.stat().st_mtime_ns if mark.exists() else status.st_mtime_ns
                    yield _Kept(path, status.st_size, used_ns)

    def _files(self) -> Iterator[Path]:
        """Of what is not ours nothing is counted or deleted, nor what a link leads to."""
        for model in self.root.glob("*"):
            if _MODEL_DIRECTORY.fullmatch(model.name) and not model.is_symlink():
                for rendering in model.glob("*"):
                    if not rendering.is_symlink():
                        yield from rendering.glob("*")


class _Kept(NamedTuple):
    path: Path
    size_bytes: int
    used_ns: int
