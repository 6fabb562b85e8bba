"""The cache of parts on disk: one file per model digest, rendering and part, shared by every process of a device.

A file is complete before it gets its name: written beside, flushed to the disk, renamed. Contents are checked against
their sha256 when a file is written or adopted, and again only if the file was touched since: beside each lies a mark
with the size, times and inode it had then. That, and the header, is what a start relies on. What is in use is locked
(shared) and stays; beyond the limit the longest unused goes first. The cache is a help, never a condition: whatever
goes wrong is logged, and the part is made or fetched again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from agent.compute.layer_file import LayerFile, Write, file_bytes, sync_directory, write_layer_file
from agent.compute.part import PartKey, check_part
from agent.errors import BadCheckpoint

logger = logging.getLogger(__name__)

Array = NDArray[Any]

_WHOLE, _MARK, _PARTIAL, _TEMPORARY = ".safetensors", ".mark", ".partial", ".tmp"


_HEADER_PAGES_BYTES = 16 << 10
"""The header of a layer takes about 6 KiB."""
_MARK_BYTES = 1 << 10
"""Four numbers take 150."""
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Without waiting for whoever would write into what turns out to be a pipe."""
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
            file = _open(path, key, part)
            if file is None:
                return None
            if not _is_marked(path):
                file.verify()
                _mark(path)
        except BadCheckpoint as problem:
            is_damaged = not isinstance(problem.__cause__, OSError)  # else it may be read another time
            logger.warning(
                "part_damaged" if is_damaged else "part_unreadable", extra={"file": str(path), "problem": str(problem)}
            )
            if is_damaged:
                _remove(path)
            return None
        with suppress(OSError):
            os.utime(_beside(path, _MARK))
        return file

    def write(self, key: PartKey, part: str, arrays: Mapping[str, Array]) -> LayerFile | None:
        """Keep a part that was made here. None, and a line in the log, when it cannot be kept."""
        path = self._path(key, part)
        try:
            if not self.make_room(file_bytes(arrays)):
                return None
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = _temporary(path)
            try:
                write_layer_file(descriptor, key, part, arrays, self._write)
                os.fsync(descriptor)
                os.replace(temporary, path)
            finally:
                os.close(descriptor)
                with suppress(OSError):
                    temporary.unlink()
            sync_directory(path.parent)
            _mark(path)
            return _open(path, key, part)
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
        return _beside(path, _PARTIAL)

    def adopt(self, key: PartKey, part: str) -> LayerFile:
        """Give a fetched part its name.

        Raises OSError, and BadCheckpoint naming what is damaged: the partial file is deleted then.
        """
        partial, path = self.partial(key, part), self._path(key, part)
        try:
            LayerFile(partial, key, part).verify()
        except BadCheckpoint:
            _remove(partial)
            raise
        descriptor = os.open(partial, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
        sync_directory(path.parent)
        _mark(path)
        return LayerFile(path, key, part)

    def make_room(self, size_bytes: int) -> bool:
        """Evict the longest unused until `size_bytes` more fit; False, and a line in the log, when they never will."""
        kept = sorted(self._kept(), key=lambda kept: kept.used_ns)
        used_bytes = sum(entry.size_bytes for entry in kept)
        if size_bytes <= self.limit_bytes:
            for entry in kept:
                if used_bytes + size_bytes <= self.limit_bytes:
                    break
                if _is_evicted(entry.path):
                    used_bytes -= entry.size_bytes
        fits = used_bytes + size_bytes <= self.limit_bytes
        if not fits and self.limit_bytes:
            in_use = {"limit_bytes": self.limit_bytes, "in_use_bytes": used_bytes, "wanted_bytes": size_bytes}
            logger.warning("cache_full", extra=in_use)
        return fits

    def _path(self, key: PartKey, part: str) -> Path:
        return self.root / key.directory / (check_part(part) + _WHOLE)

    def _kept(self) -> Iterator[_Kept]:
        """Whole and partial files; what a process that died was writing is deleted."""
        for path in self._files():
            with suppress(OSError):
                status = path.lstat()
                if path.suffix == _TEMPORARY:
                    _remove_unused(path)
                elif path.suffix in (_WHOLE, _PARTIAL) and stat.S_ISREG(status.st_mode):
                    mark = _beside(path, _MARK)
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


def lock_file(descriptor: int) -> bool:
    """Take the exclusive lock of an open file, which goes with the descriptor; False when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, key: PartKey, part: str) -> LayerFile | None:
    """The file, with a shared lock that goes with the object. Raises BadCheckpoint."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise BadCheckpoint(f"{path}: cannot be read: {problem.strerror}") from problem
    file = None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadCheckpoint(f"{path}: not a regular file")
        if not _is_shared(descriptor):
            return None
        with suppress(OSError):  # only the header's pages: the map would bring in megabytes around them at once
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(descriptor, _HEADER_PAGES_BYTES, 0)
        file = LayerFile(path, key, part)
        if not os.fstat(descriptor).st_nlink:  # deleted before it was locked
            file = None
    finally:
        if file is None:
            os.close(descriptor)
    if file is not None:
        file.close_with(descriptor)
    return file


def _is_shared(descriptor: int) -> bool:
    """Lock an open file against eviction; False when a process is about to delete it, or has not finished it yet."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: eviction then may take a file that is being read
        return True
    return True


def _temporary(path: Path) -> tuple[int, Path]:
    """A new locked file beside `path`."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=_TEMPORARY)
        # Between the two calls another process may have taken it for one that was left behind.
        if lock_file(descriptor) and os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


def _remove_unused(path: Path) -> bool:
    """Delete a file unless somebody holds its lock. Raises OSError."""
    descriptor = os.open(path, _READ | os.O_NOFOLLOW)
    try:
        if not lock_file(descriptor):
            return False
        for doomed in _with_mark(path):
            doomed.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _is_evicted(path: Path) -> bool:
    """Delete a file that nobody uses; True when it is gone."""
    try:
        if not _remove_unused(path):
            return False
    except FileNotFoundError:  # another process was faster
        return True
    except OSError as problem:
        logger.warning("part_not_evicted", extra={"file": str(path), "problem": str(problem)})
        return False
    logger.info("part_evicted", extra={"file": str(path)})
    return True


def _remove(path: Path) -> None:
    for doomed in _with_mark(path):
        with suppress(OSError):
            doomed.unlink()


def _with_mark(path: Path) -> tuple[Path, ...]:
    """A partial file has none: the mark beside it is the whole one's."""
    return (path, _beside(path, _MARK)) if path.suffix == _WHOLE else (path,)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_suffix(suffix)


def _state(path: Path) -> dict[str, int]:
    """What changes when anybody writes to a file or puts another in its place: the time of change cannot be set."""
    status = path.stat()
    return {
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def _is_marked(path: Path) -> bool:
    try:
        descriptor = os.open(_beside(path, _MARK), _READ | os.O_NOFOLLOW)
        try:
            noted = os.read(descriptor, _MARK_BYTES)
        finally:
            os.close(descriptor)
        return bool(json.loads(noted) == _state(path))
    except (OSError, ValueError, RecursionError):
        return False


def _mark(path: Path) -> None:
    """Note that the contents of `path` were checked as it is now."""
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-mark-", suffix=_TEMPORARY)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(_state(path), file)
            os.replace(temporary, _beside(path, _MARK))
        finally:
            with suppress(OSError):
                os.unlink(temporary)
