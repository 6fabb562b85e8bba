"""The only place of edgectl that prints: data on stdout, everything else on stderr.

Wording: no period after a one-sentence message; a way out stands after a blank line, as `hint: …`. Readable without
colour; NO_COLOR and pipes are honoured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.errors import ConfigError
from edgectl.failures import ExitCode, failure_of

MIB = 1 << 20


class CommandFailure(Exception):
    """A command cannot do what it was asked; ends it with an exit code of `failures`."""

    def __init__(self, exit_code: ExitCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.hint = hint

    @classmethod
    def of(cls, code: str, message: str) -> CommandFailure:
        """The failure of a code of the table, with its exit code and hint."""
        failure = failure_of(code)
        return cls(failure.exit_code, message, failure.hint)


def emit(text: str, *, end: str = "\n") -> None:
    """Data, at once: a stream is read while it grows."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def show(text: str) -> None:
    """Data for a person to read, with what devices say of themselves in it."""
    emit(printable(text))


def emit_json(value: object) -> None:
    """Data as one line of JSON."""
    emit(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def say(text: str) -> None:
    """Something for the person at the terminal."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with escapes in place of control characters other than ends of lines and tabs.

    Much of what is said comes from other machines, and a terminal obeys what it is sent.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii") for char in text
    )


def say_failure(message: str, hint: str = "") -> None:
    """What went wrong, and the way out where there is one."""
    say(f"error: {message}")
    if hint:
        say(f"\nhint: {hint}")


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """What `--out` is given, as one indented JSON document. Raises ConfigError when it cannot be written."""
    try:
        path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"--out {path}: {problem.strerror}") from problem
    say(f"wrote {path}")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while something takes long; called with (done, in all). Nothing is shown where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def mib(size_bytes: int) -> str:
    """Bytes as MiB, rounded up: a size is never shown smaller than it is."""
    return f"{-(-size_bytes // MIB):,} MiB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns wide enough for their cells, two spaces apart; numbers (cells that begin with a digit) to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    to_the_right = [all(cell[:1].isdigit() or cell == "-" for cell in column[1:]) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
