"""Run a pip command behind one progress line; show its output only when it fails.

    python examples/installing.py "installing edgectl" pip install .

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque

_PACKAGE = re.compile(r"^\s*(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)")
_DONE = re.compile(r"^Successfully installed (.*)")
_BAR_WIDTH = 24
_EXPECTED_PACKAGES = 60
"""Only the bar's scale: a serving installation brings about as many."""


def main(label: str, command: list[str]) -> int:
    started_s = time.monotonic()
    packages: set[str] = set()
    output: deque[str] = deque(maxlen=400)
    doing = "resolving"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)
        if found := _PACKAGE.match(line):
            packages.add(found[1])
            doing = found[1]
        elif "Building editable" in line or "Building wheel" in line:
            doing = "compiling the extension"
        elif line.startswith("Installing collected"):
            doing = "unpacking"
        show(label, len(packages), doing, time.monotonic() - started_s)
    status = process.wait()
    took_s = time.monotonic() - started_s
    if status:
        print(f"\n{''.join(output)}\n{label} failed (exit status {status})", file=sys.stderr)
    else:
        show(label, max(len(packages), _EXPECTED_PACKAGES), f"{len(packages)} packages", took_s, end="\n")
    return status


def show(label: str, done: int, doing: str, took_s: float, end: str = "") -> None:
    """Redraw the line on a terminal; elsewhere print only the last one."""
    if not sys.stderr.isatty() and not end:
        return
    filled = _BAR_WIDTH * min(done, _EXPECTED_PACKAGES) // _EXPECTED_PACKAGES
    bar = "━" * filled + "·" * (_BAR_WIDTH - filled)
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{start}{label} {bar} {took_s:3.0f} s  {doing[:40]}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
