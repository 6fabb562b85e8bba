"""Epochs: numbers that grow with every opened micro-batch, also over restarts of the coordinator.

An epoch is (start counter, counter) packed into one integer, so a frame from before a restart is always older. The
start counter is on disk before the first epoch is given out.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.errors import ConfigError

_FILE_NAME = "start_counter"
_COUNTER_BITS = 32
MAX_START = (1 << 31) - 1
"""Epochs stay below 2**63, the limit of the frame header; at one start a second this lasts 68 years."""


class Epochs:
    """Gives out epochs of one start of the coordinator, each larger than all before it."""

    def __init__(self, start: int) -> None:
        if not 0 < start <= MAX_START:
            raise ValueError(f"start counter {start} is outside 1..{MAX_START}")
        self._next = start << _COUNTER_BITS

    def next(self) -> int:
        self._next += 1
        return self._next


def count_start(state_dir: Path) -> int:
    """Raises the counter of `state_dir` by one, durably, and returns it. Raises ConfigError."""
    path = state_dir / _FILE_NAME
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = path.read_text(encoding="ascii") if path.exists() else "0"
        start = int(text) + 1
        _write_durably(path, f"{start}\n")
    except ValueError as problem:
        raise ConfigError(
            f"{path}: holds no number; write one larger than every start before (the seconds since 2026 will do)"
        ) from problem
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}; set coordinator.state_dir to a writable directory") from problem
    return start


def _write_durably(path: Path, text: str) -> None:
    """Replaces `path` so that after a crash it holds the old text or the new, and the new once this has returned."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
