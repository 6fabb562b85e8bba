"""Training runs side by side, each in a process of its own: one line of JSON in, lines of JSON out.

A process takes one run after the other, since starting torch costs seconds. It reads `{"spec": …, …}` and writes
`{"done": n, "total": n}` as often as it likes, then `{"result": …}` or `{"failed": "why"}`. What it says on stderr is
kept in a file and quoted when it dies.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol, cast

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.one_thread import ONE_THREAD
from edgectl.output import CommandFailure
from edgectl.splitting.runs import RunResult, RunSpec, RunStore, result_from_json

MOST_QUOTED = 2000
"""Characters of a dead process's last words."""
LONGEST_LINE = 64 << 20
"""Of one run's result: 5,000 returns are 100 kB."""
READ_BYTES = 1 << 16
STOP_S = 5.0


class Watcher(Protocol):
    """Is told how runs come along."""

    def began(self, spec: RunSpec) -> None: ...
    def advanced(self, spec: RunSpec, done: int, total: int) -> None: ...
    def ended(self, spec: RunSpec, result: RunResult) -> None: ...


class NobodyWatches:
    """A watcher that shows nothing."""

    def began(self, spec: RunSpec) -> None: ...
    def advanced(self, spec: RunSpec, done: int, total: int) -> None: ...
    def ended(self, spec: RunSpec, result: RunResult) -> None: ...


def run_all(
    specs: Sequence[RunSpec],
    store: RunStore,
    command: Sequence[str],
    inputs: Mapping[str, Any],
    *,
    processes: int,
    watcher: Watcher,
) -> dict[RunSpec, RunResult]:
    """Every run's result, from the store where it is there; each new one is stored as soon as it is known.

    Raises CommandFailure when a run fails or its process dies; what was finished stays in the store.
    """
    wanted = list(dict.fromkeys(specs))
    results = {spec: found for spec in wanted if (found := store.get(spec)) is not None}
    waiting = deque(sorted((spec for spec in wanted if spec not in results), key=_cost, reverse=True))
    if not waiting:
        return results
    pool = _Pool(command, inputs, store.folder)
    try:
        for _ in range(min(processes, len(waiting))):
            spec = waiting.popleft()
            pool.start(spec)
            watcher.began(spec)
        while pool.busy:
            for process, spec, message in pool.messages():
                if "result" in message:
                    results[spec] = result = result_from_json(message["result"])
                    store.put(spec, result)
                    watcher.ended(spec, result)
                    following = waiting.popleft() if waiting else None
                    pool.next(process, following)
                    if following is not None:
                        watcher.began(following)
                elif "failed" in message:
                    raise CommandFailure(
                        ExitCode.FAILURE,
                        f"training {spec.title} failed: {message['failed']}",
                        "finished runs are kept: start again with --resume",
                    )
                else:
                    watcher.advanced(spec, int(message["done"]), int(message["total"]))
    finally:
        pool.close()
    return results


def _cost(spec: RunSpec) -> float:
    """Longest first, so that no process is left alone with a long run at the end. DQN takes about twice as long."""
    return spec.steps * (2.0 if spec.algorithm == "dqn" else 1.0)


class _Pool:
    """The processes, what each of them is at, and what of their lines is here."""

    def __init__(self, command: Sequence[str], inputs: Mapping[str, Any], folder: Path) -> None:
        self._command = list(command)
        self._inputs = dict(inputs)
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}
        self._specs: dict[int, RunSpec] = {}
        self._received: dict[int, bytearray] = {}

    @property
    def busy(self) -> bool:
        return bool(self._specs)

    def start(self, spec: RunSpec) -> None:
        """A new process for this run. Raises ConfigError for a folder that cannot be written."""
        log = self._folder / f"process-{len(self._processes)}.log"
        # One thread each: two processes that spin on the same processors take four times as long.
        environment = os.environ | dict(ONE_THREAD)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as problem:
            raise ConfigError(f"--out {log}: {problem.strerror}") from problem
        self._processes.append(process)
        self._logs[process.pid] = log
        self._received[process.pid] = bytearray()
        self._selector.register(_pipe(process.stdout), selectors.EVENT_READ, process)
        self.next(process, spec)

    def next(self, process: subprocess.Popen[bytes], spec: RunSpec | None) -> None:
        """Gives an idle process its next run; None: there is none, and it ends."""
        self._specs.pop(process.pid, None)
        stdin = _pipe(process.stdin)
        with suppress(BrokenPipeError):
            if spec is None:
                self._selector.unregister(_pipe(process.stdout))
                stdin.close()
                return
            self._specs[process.pid] = spec
            stdin.write(json.dumps({"spec": asdict(spec), **self._inputs}).encode() + b"\n")
            stdin.flush()

    def messages(self) -> list[tuple[subprocess.Popen[bytes], RunSpec, dict[str, Any]]]:
        """Waits for what processes say. Raises CommandFailure when one of them has died."""
        found = []
        for key, _ in self._selector.select():
            process = cast("subprocess.Popen[bytes]", key.data)
            data = os.read(key.fd, READ_BYTES)
            received = self._received[process.pid]
            received += data
            if not data or len(received) > LONGEST_LINE:
                raise self._death(process)
            *lines, rest = received.split(b"\n")
            self._received[process.pid] = bytearray(rest)
            spec = self._specs[process.pid]
            found += [(process, spec, json.loads(line)) for line in lines if line.startswith(b"{")]
        return found

    def _death(self, process: subprocess.Popen[bytes]) -> CommandFailure:
        process.kill()
        process.wait()
        words = self._logs[process.pid].read_text(encoding="utf-8", errors="replace").strip()[-MOST_QUOTED:]
        return CommandFailure(
            ExitCode.FAILURE,
            f"training {self._specs[process.pid].title}: its process ended with {process.returncode}: {words or '-'}",
            "finished runs are kept: start again with --resume",
        )

    def close(self) -> None:
        """Ends every process, whatever it is at."""
        for process in self._processes:
            if process.pid in self._specs:
                process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    _pipe(pipe).close()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._selector.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # both ends were asked for
    return pipe
