"""One file of the cache of parts: opened under a lock, deleted unless somebody uses it, marked when it was checked.

The directory may hold what is not ours, and other processes write, read and evict in it at the same time: nothing here
waits for anybody, follows a link to delete what it leads to, or takes a file for what it was before it was locked.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from agent.compute.layer_file import LayerFile
from agent.compute.part import PartKey
from agent.errors import BadCheckpoint

logger = logging.getLogger(__name__)

WHOLE, MARK, PARTIAL, TEMPORARY = ".safetensors", ".mark", ".partial", ".tmp"


_HEADER_PAGES_BYTES = 16 << 10
"""The header of a layer takes about 6 KiB."""
_MARK_BYTES = 1 << 10
"""Four numbers take 150."""
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Without waiting for whoever would write into what turns out to be a pipe."""


def lock_file(descriptor: int) -> bool:
    """Take the exclusive lock of an open file, which goes with the descriptor; False when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_part(path: Path, key: PartKey, part: str) -> LayerFile | None:
    """The file, with a shared lock that goes with the object; None when there is none, or not for long any more.

    Raises BadCheckpoint naming the file, because of an OSError when it may be read another time.
    """
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
        if not is_shared(descriptor):
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


def is_shared(descriptor: int) -> bool:
    """Lock an open file against eviction; False when a process is about to delete it, or has not finished it yet."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: eviction then may take a file that is being read
        return True
    return True


def new_temporary(path: Path) -> tuple[int, Path]:
    """A new locked file beside `path`."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=TEMPORARY)
        # Between the two calls another process may have taken it for one that was left behind.
        if lock_file(descriptor) and os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


def remove_unused(path: Path) -> bool:
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


def is_evicted(path: Path) -> bool:
    """Delete a file that nobody uses; True when it is gone."""
    try:
        if not remove_unused(path):
            return False
    except FileNotFoundError:  # another process was faster
        return True
    except OSError as problem:
        logger.warning("part_not_evicted", extra={"file": str(path), "problem": str(problem)})
        return False
    logger.info("part_evicted", extra={"file": str(path)})
    return True


def remove(path: Path) -> None:
    """Delete a file that is good for nothing, where it can be."""
    for doomed in _with_mark(path):
        with suppress(OSError):
            doomed.unlink()


def _with_mark(path: Path) -> tuple[Path, ...]:
    """A partial file has none: the mark beside it is the whole one's."""
    return (path, beside(path, MARK)) if path.suffix == WHOLE else (path,)


def beside(path: Path, suffix: str) -> Path:
    """The file of the same part with another suffix."""
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


def is_marked(path: Path) -> bool:
    """Whether the contents of `path` were checked as it is now."""
    try:
        descriptor = os.open(beside(path, MARK), _READ | os.O_NOFOLLOW)
        try:
            noted = os.read(descriptor, _MARK_BYTES)
        finally:
            os.close(descriptor)
        return bool(json.loads(noted) == _state(path))
    except (OSError, ValueError, RecursionError):
        return False


def mark_checked(path: Path) -> None:
    """Note that the contents of `path` were checked as it is now."""
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-mark-", suffix=TEMPORARY)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(_state(path), file)
            os.replace(temporary, beside(path, MARK))
        finally:
            with suppress(OSError):
                os.unlink(temporary)
