"""The digest by which devices tell that they hold the same model.

sha256 over config.json, tokenizer.json, and of every safetensors file its name, header and content. Contents take long
to read, so their digests are kept in a cache directory, each under the file's real path, size, modification time and
inode; a file that changed has another key. The cache is a help, never a condition: without it the digest is the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from agent.compute.checkpoint import weight_files
from agent.compute.safetensors_file import SafetensorsFile
from agent.errors import BadCheckpoint

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

READ_BYTES = 4 << 20
"""Large enough that reading keeps a disk busy, small enough to report progress often."""

SETTLED_NS = 2_000_000_000
"""The coarsest file system clock in use (FAT) ticks every two seconds."""

_FORMAT = b"edgectl model digest 1"
_ABSENT = "absent"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DigestInputs(NamedTuple):
    """What a digest is made of: enough to tell that a config.json belongs to it, without the weights."""

    config_sha256: str
    tokenizer_sha256: str
    """"absent" where the model comes without one."""
    files: tuple[tuple[str, bytes, str], ...]
    """(name, header, sha256 of the content) of every safetensors file, by name."""


def model_digest(path: Path, cache_dir: Path | None = None, progress: Progress | None = None) -> str:
    """Digest of the model directory `path`, 64 hexadecimal digits.

    Raises BadCheckpoint for a file that is missing, malformed or changes while it is read.
    """
    return digest_of(digest_inputs(path, cache_dir, progress))


def digest_inputs(path: Path, cache_dir: Path | None = None, progress: Progress | None = None) -> DigestInputs:
    """What `digest_of` makes the digest of the directory `path` from. Raises BadCheckpoint as `model_digest` does."""
    files = weight_files(path)
    headers = [SafetensorsFile(file).header for file in files]
    report = _FileProgress(progress, sum(file.stat().st_size for file in files))
    config = _small_file_digest(path / "config.json")
    # A model may come without a tokenizer; one that is empty is something else.
    tokenizer = path / "tokenizer.json"
    return DigestInputs(
        config,
        _small_file_digest(tokenizer) if tokenizer.exists() else _ABSENT,
        tuple(
            (file.name, header, _content_digest(file, cache_dir, report))
            for file, header in zip(files, headers, strict=True)
        ),
    )


def digest_of(inputs: DigestInputs) -> str:
    """The digest itself."""
    digest = hashlib.sha256()
    _add(digest, _FORMAT)
    for name, content in (("config.json", inputs.config_sha256), ("tokenizer.json", inputs.tokenizer_sha256)):
        _add(digest, name.encode())
        _add(digest, content.encode())
    for name, header, content in inputs.files:
        _add(digest, name.encode())
        _add(digest, header)
        _add(digest, content.encode())
    return digest.hexdigest()


class _FileProgress:
    """Sums bytes over files for the caller's callback."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress = progress
        self._total_bytes = total_bytes
        self._done_bytes = 0

    def add(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)


def _add(digest: hashlib._Hash, part: bytes) -> None:
    """Length first, so that no two lists of parts give the same bytes."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _small_file_digest(file: Path) -> str:
    return _content_digest(file, None, _FileProgress(None, 0))


def _content_digest(path: Path, cache_dir: Path | None, report: _FileProgress) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            identity = _identity(path, status)
            found = None if cache_dir is None else _cached(cache_dir, identity)
            if found is not None:
                report.add(status.st_size)
                return found
            computed = _hash(file, status.st_size, report)
            if _identity(path, os.fstat(file.fileno())) != identity:
                raise BadCheckpoint(f"{path}: changed while it was read; wait for its download or copy to end")
    except OSError as problem:
        raise BadCheckpoint(f"{path}: cannot be read: {problem.strerror}") from problem
    if cache_dir is not None:
        _remember(cache_dir, identity, status.st_mtime_ns, computed)
    return computed


def _hash(file: FileIO, size_bytes: int, report: _FileProgress) -> str:
    """Reads no more than `size_bytes`, so that a file which grows as fast as it is read comes to an end."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    left_bytes = size_bytes
    while left_bytes and (count := file.readinto(buffer[:left_bytes])):
        digest.update(buffer[:count])
        report.add(count)
        left_bytes -= count
    return digest.hexdigest()


def _identity(path: Path, status: os.stat_result) -> dict[str, object]:
    return {
        "path": os.path.realpath(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
    }


def _cache_file(cache_dir: Path, identity: dict[str, object]) -> Path:
    """One file per path: processes that share the cache do not rewrite each other's entries."""
    return cache_dir / f"{hashlib.sha256(os.fsencode(str(identity['path']))).hexdigest()}.json"


def _cached(cache_dir: Path, identity: dict[str, object]) -> str | None:
    try:
        entry = json.loads(_cache_file(cache_dir, identity).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("file") != identity:
        return None
    found = entry.get("sha256")
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None


def _remember(cache_dir: Path, identity: dict[str, object], mtime_ns: int, digest: str) -> None:
    """Written beside and renamed: a reader sees the whole entry or none. mkstemp makes it 0600.

    A file changed a moment ago is not remembered: another change within the same tick of the file system's clock would
    leave its size and time as they are. The entry's own time tells what that clock says now.
    """
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=cache_dir, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"file": identity, "sha256": digest}, file)
                file.flush()
                has_settled = os.fstat(descriptor).st_mtime_ns - mtime_ns >= SETTLED_NS
            if has_settled:
                os.replace(temporary, _cache_file(cache_dir, identity))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as problem:
        logger.warning("digest_not_cached: %s: %s", cache_dir, problem)
