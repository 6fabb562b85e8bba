"""systemd's notification protocol (sd_notify(3)) and the rule for feeding its watchdog.

Outside systemd every call does nothing. The watchdog is fed only while every loop of the daemon turns: a timer that
always pings would hide the hang it is there to find.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

PATIENCE_S = 1.0
"""How long a manager that reads nothing is waited for: the daemon has devices to serve."""


def notify(env: Mapping[str, str], *lines: str) -> bool:
    """Send lines such as `READY=1` or `STATUS=loading layers` to systemd; False when there is nobody to tell.

    Raises OSError when NOTIFY_SOCKET is set and cannot be reached, or nobody reads from it.
    """
    address = env.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@":
        raise OSError(f"NOTIFY_SOCKET={address} is neither a path nor an abstract socket")
    # A leading @ stands for the NUL byte of Linux's abstract sockets, which have no file.
    target = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(PATIENCE_S)
        channel.connect(target)
        channel.sendall("\n".join(lines).encode())
    return True


def watchdog_interval_s(env: Mapping[str, str], pid: int) -> float | None:
    """How often to feed: a third of WATCHDOG_USEC, None when systemd watches no process or another one."""
    if env.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    microseconds = env.get("WATCHDOG_USEC", "")
    return int(microseconds) / 3e6 if microseconds.isdecimal() and int(microseconds) > 0 else None


class Watchdog:
    """Says whether to feed the watchdog; pure, the clock is an argument.

    It is fed when every loop has ticked since the last feeding or is inside a declared long operation (loading layers)
    whose deadline has not passed.
    """

    def __init__(self, interval_s: float, loops: Iterable[str]) -> None:
        self._interval_s = interval_s
        self._loops = tuple(loops)
        self._ticked: set[str] = set()
        self._busy_until_s: dict[str, float] = {}
        self._fed_s: float | None = None

    def tick(self, loop: str) -> None:
        """The loop turned once. Raises KeyError for a loop nobody registered."""
        self._ticked.add(self._known(loop))

    def begin(self, loop: str, deadline_s: float) -> None:
        """The loop enters an operation that may keep it from turning until `deadline_s` on the monotonic clock."""
        self._busy_until_s[self._known(loop)] = deadline_s

    def end(self, loop: str) -> None:
        """The loop is back from its long operation, which counts as a tick."""
        self._busy_until_s.pop(self._known(loop), None)
        self._ticked.add(loop)

    def silent(self, now_s: float) -> tuple[str, ...]:
        """Loops that neither ticked since the last feeding nor are inside a long operation."""
        return tuple(
            loop for loop in self._loops if loop not in self._ticked and self._busy_until_s.get(loop, now_s) <= now_s
        )

    def feed(self, now_s: float) -> bool:
        """Whether to send `WATCHDOG=1` now; True starts the next interval."""
        due = self._fed_s is None or now_s - self._fed_s >= self._interval_s
        if not due or self.silent(now_s):
            return False
        self._fed_s = now_s
        self._ticked.clear()
        return True

    def _known(self, loop: str) -> str:
        if loop not in self._loops:
            raise KeyError(f"{loop} is not one of the watched loops {', '.join(self._loops)}")
        return loop
