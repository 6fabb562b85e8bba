"""Child processes of a local cluster: started with a log file each, watched, and ended whatever happens."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

STOP_PATIENCE_S = 8.0
LOG_TAIL_LINES = 25


class ProcessFailed(Exception):
    """A child ended too early or with an error; the text carries the end of its log."""


class Processes:
    """Context manager: on exit every child is asked to stop, waited for, and killed when it does not listen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Once they are asked, a second Ctrl-C must not leave them behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        children = list(reversed(self._running.values()))
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(self, name: str, command: Sequence[str | Path]) -> None:
        """Start a daemon; both its outputs go to `<name>.log`. Ctrl-C is left to us."""
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises ProcessFailed when a daemon has ended."""
        for name, child in self._running.items():
            status = child.poll()
            if status is not None:
                raise ProcessFailed(f"{name} ended with exit status {status}\n\n{self.log_tail(name)}")

    def wait_any(self) -> None:
        """Block until one of the daemons ends."""
        next(iter(self._running.values())).wait()

    def logs(self) -> str:
        """The end of every log, for a failure whose place is not known."""
        return "\n\n".join(self.log_tail(name) for name in self._running)

    def log_tail(self, name: str) -> str:
        lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"--- {name} ---", *lines[-LOG_TAIL_LINES:]])

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


def output_of(command: Sequence[str | Path]) -> str:
    """Standard output of a command that ends by itself. Raises ProcessFailed with its standard error."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ProcessFailed(f"{Path(words[0]).name} {' '.join(words[1:])}\n\n{done.stdout}{done.stderr}")
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports
