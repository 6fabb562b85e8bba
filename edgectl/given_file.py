"""Text files that a person names: read whole, but never more than a limit."""

from __future__ import annotations

from pathlib import Path


class UnreadableFile(ValueError):
    """Why a file could not be read. It does not name the file: who asked for it knows how a person gave it."""


def read_given(path: Path, most_bytes: int) -> str:
    """The text of a file. Raises UnreadableFile where it cannot be opened, exceeds `most_bytes` or is no UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as problem:
        raise UnreadableFile(problem.strerror or str(problem)) from problem
    if len(data) > most_bytes:
        raise UnreadableFile(f"more than {most_bytes >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise UnreadableFile(f"no UTF-8 at byte {problem.start}") from problem
