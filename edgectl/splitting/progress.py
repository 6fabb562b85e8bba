"""How a person watches the study: bars on a terminal, a line per finished run elsewhere, and where the time went."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from edgectl.output import say
from edgectl.splitting.pool import Watcher
from edgectl.splitting.runs import RunResult, RunSpec, write_whole


@contextmanager
def watching(total: int, done: int) -> Iterator[Watcher]:
    """A watcher of so many runs, of which some are done already."""
    if not sys.stderr.isatty():
        yield _Lines(total, done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bars(progress, total, done)


class _Lines:
    """For logs and pipes."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._done = done

    def began(self, spec: RunSpec) -> None: ...

    def advanced(self, spec: RunSpec, done: int, total: int) -> None: ...

    def ended(self, spec: RunSpec, result: RunResult) -> None:
        self._done += 1
        say(f"[{self._done}/{self._total}] {spec.title}: {result.mean:.3f} after {result.train_s:.0f} s")


class _Bars:
    """One for all runs, one for each that is under way."""

    def __init__(self, progress: Any, total: int, done: int) -> None:
        self._progress = progress
        self._whole = progress.add_task("all runs", total=total, completed=done)
        self._tasks: dict[RunSpec, Any] = {}

    def began(self, spec: RunSpec) -> None:
        self._tasks[spec] = self._progress.add_task(spec.title, total=spec.steps)

    def advanced(self, spec: RunSpec, done: int, total: int) -> None:
        self._progress.update(self._tasks[spec], completed=done, total=total)

    def ended(self, spec: RunSpec, result: RunResult) -> None:
        self._progress.remove_task(self._tasks.pop(spec))
        self._progress.advance(self._whole)


class PartClock:
    """Seconds per part of the study, kept in a file and summed over interruptions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = {}
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.seconds = {str(name): float(value) for name, value in kept.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self.seconds = {}  # nothing kept, or cut short

    @contextmanager
    def part(self, name: str, *, least_s: float = 0.5) -> Iterator[None]:
        """Adds what happens inside to a part. What takes less than `least_s` only found that all is done."""
        start = perf_counter()
        try:
            yield
        finally:
            spent = perf_counter() - start
            if spent >= least_s or name not in self.seconds:
                self.seconds[name] = self.seconds.get(name, 0.0) + spent
                write_whole(self._path, json.dumps(self.seconds) + "\n")
