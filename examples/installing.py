"""Run a pip command behind one progress line; show its output only when it fails.

    python examples/installing.py "installing edgectl" pip install .

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque

_PACKAGE = re.compile(r"^\s*(?:Collecting|Requirement already satisfied:|Processing \S*/) ?([A-Za-z0-9._]+)")
_PHASES = (
    ("Building editable", "compiling the extension"),
    ("Building wheel", "compiling the extension"),
    ("Installing collected", "unpacking"),
)
_BAR_WIDTH = 24
_EXPECTED_PACKAGES = 50
"""Only the bar's scale: a serving installation brings about as many."""
_REDRAW_S = 0.2
_KEPT_LINES = 400


class ProgressLine:
    """Packages seen so far and what pip is doing, redrawn in place on a terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started_s = time.monotonic()
        self._packages: set[str] = set()
        self._doing = "resolving"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._thread.start()

    def see(self, line: str) -> None:
        """Take notice of one line of pip's output."""
        if found := _PACKAGE.match(line):
            self._packages.add(found[1])
            self._doing = found[1]
        for phase, doing in _PHASES:
            if phase in line:
                self._doing = doing

    def end(self, doing: str | None = None) -> None:
        """Draw it for the last time, full unless it failed."""
        self._ended.set()
        self._thread.join()
        count = len(self._packages)
        self._draw(_EXPECTED_PACKAGES if doing is None else count, doing or f"{count} packages", end="\n")

    def _redraw(self) -> None:
        while sys.stderr.isatty() and not self._ended.wait(_REDRAW_S):
            self._draw(len(self._packages), self._doing)

    def _draw(self, done: int, doing: str, end: str = "") -> None:
        filled = _BAR_WIDTH * min(done, _EXPECTED_PACKAGES) // _EXPECTED_PACKAGES
        bar = "━" * filled + "·" * (_BAR_WIDTH - filled)
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        took_s = time.monotonic() - self._started_s
        print(f"{start}{self._label} {bar} {took_s:3.0f} s  {doing[:40]}", end=end, file=sys.stderr, flush=True)


def main(label: str, command: list[str]) -> int:
    output: deque[str] = deque(maxlen=_KEPT_LINES)
    progress = ProgressLine(label)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)
        progress.see(line)
    status = process.wait()
    progress.end(f"failed with exit status {status}" if status else None)
    if status:
        print("".join(output), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
