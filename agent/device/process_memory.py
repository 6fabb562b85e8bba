"""Memory this process holds for itself: what a loaded model takes, without the files that are mapped."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")


def anonymous_bytes(status: Path = _STATUS) -> int | None:
    """Resident memory that belongs to no file (RssAnon of proc(5)); None where the kernel does not say.

    Weights read through a memory map are not among it: their pages may be dropped at any time.
    """
    try:
        lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        amount, *unit = value.split() or ["-"]
        if name == "RssAnon" and amount.isdecimal() and unit == ["kB"]:
            return int(amount) * 1024
    return None
