"""Makes parts of a model for those who fetch them, in a child process: quantizing a layer takes a processor's second.

The child is started by the first part that is not in the cache, and ends with this process. It writes the part into the
cache; where the disk is full it sends it back instead.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from agent.compute.layer_file import LayerHeader, write_layer_file
from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey, check_part
from agent.errors import AgentError, BadCheckpoint
from agent.worker_channel import module_command

if TYPE_CHECKING:
    from agent.compute.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

MOST_WAITING = 2048
"""Parts to be made: more than the layers of any model, in two renderings."""
MOST_IN_MEMORY = 4
"""Parts kept here while the disk is full; each device has that many open at a time."""
MOST_FAILURES = 256
"""Parts whose making failed, remembered until they are asked for again."""
NICENESS = 5
STOP_S = 5.0
MAKE_S = 600.0
"""The largest head takes a minute of a small processor; a child that needs longer hangs, on its disk for one."""


@dataclass(frozen=True, slots=True)
class MadeInMemory:
    """A part that could not be written; satisfies `agent.weight_server.Given`."""

    header: LayerHeader
    whole: bytes

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See `Given.read`."""
        start = self.header.entries[name].start + offset
        return self.whole[start : start + length]


@dataclass(frozen=True, slots=True)
class Job:
    """One part to make."""

    key: PartKey
    part: str

    def line(self) -> bytes:
        """What the child reads."""
        key = self.key
        fields = [key.digest, key.quantization, key.block_size, key.compute, self.part]
        return json.dumps(fields).encode() + b"\n"


class PartMaker:
    """Parts of one model directory, made one after the other. `find` and `problem` never wait."""

    def __init__(self, directory: Path, root: Path, limit_bytes: int) -> None:
        command = module_command("edgectl.part_maker")
        self._command = [*command, str(directory.absolute()), str(root.absolute()), str(limit_bytes)]
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: set[Job] = set()
        self._in_memory: OrderedDict[Job, MadeInMemory] = OrderedDict()
        self._failures: OrderedDict[Job, str] = OrderedDict()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="part-maker", daemon=True)
        self._thread.start()

    def in_memory(self, job: Job) -> MadeInMemory | None:
        """A part that was made and could not be written."""
        with self._lock:
            return self._in_memory.get(job)

    def make(self, job: Job) -> None:
        """Have a part made, unless it is about to be."""
        with self._lock:
            if job in self._waiting or len(self._waiting) >= MOST_WAITING:
                return
            self._waiting.add(job)
        self._queue.put(job)

    def take_problem(self, job: Job) -> str | None:
        """Why the last try failed; asked again, the part is tried again."""
        with self._lock:
            return self._failures.pop(job, None)

    def close(self) -> None:
        """End the child; what it was making is lost."""
        self._stopping = True
        self._queue.put(None)
        child = self._child
        if child is not None:
            child.kill()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None and not self._stopping:
            problem = self._make(job)
            with self._lock:
                self._waiting.discard(job)
                if problem:
                    self._failures[job] = problem
                    while len(self._failures) > MOST_FAILURES:
                        self._failures.popitem(last=False)
            if problem:
                logger.warning("part_not_made", extra={"part": f"{job.key}: {job.part}", "problem": problem})
        self._end_child()

    def _make(self, job: Job) -> str:
        """What went wrong, empty when nothing did."""
        if self._stopping:
            return ""
        try:
            return self._ask(self._running_child(), job)
        except Exception as problem:  # whatever it is, the next part is tried, by another child
            self._end_child()
            return f"{type(problem).__name__}: {problem}"

    def _ask(self, child: subprocess.Popen[bytes], job: Job) -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(job.line())
        child.stdin.flush()
        # Nothing is left over from the answer before: what is read now is this one's.
        if not select.select([child.stdout], [], [], MAKE_S)[0]:
            raise TimeoutError(f"the process that makes parts took longer than {MAKE_S:.0f} s")
        answer = child.stdout.readline()
        if not answer:
            raise EOFError("the process that makes parts ended")
        said = json.loads(answer)
        if said["bytes"]:
            self._keep(job, _read_exactly(child.stdout, said["bytes"]))
        return str(said["problem"])

    def _keep(self, job: Job, whole: bytes) -> None:
        length = 8 + int.from_bytes(whole[:8], "little")
        header = LayerHeader.parse(whole[:length], job.key, job.part, Path(job.part))
        with self._lock:
            self._in_memory[job] = MadeInMemory(header, whole)
            while len(self._in_memory) > MOST_IN_MEMORY:
                self._in_memory.popitem(last=False)

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end_child()
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True
            )
        return self._child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # one that waits for its disk ends when that has answered
            child.wait(STOP_S)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not flushed into a pipe nobody reads
                    stream.close()


def _read_exactly(stream: IO[bytes], size_bytes: int) -> bytes:
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        raise EOFError("the process that makes parts ended")
    return data


def make_parts(directory: Path, store: LayerStore, lines: IO[bytes], answers: IO[bytes]) -> None:
    """The child's loop: a part per line, an answer per part, until there is no line."""
    from agent.compute.weights import make_part
    from planner.errors import PlannerError

    model = _Model(directory, store.root.parent)
    for line in lines:
        digest, quantization, block_size, compute, part = json.loads(line)
        problem, whole = "", b""
        try:
            key = PartKey(digest, quantization, block_size, compute)
            if store.find(key, check_part(part)) is None:
                arrays = make_part(model.checkpoint(digest), key, part)
                model.checkpoint(digest)  # still the same: else these are not what they would be kept as
                if store.write(key, part, arrays) is None:
                    whole = _whole_file(lambda write: write_layer_file(-1, key, part, arrays, write))  # noqa: B023
        except (AgentError, PlannerError, ValueError, OSError, MemoryError) as failed:
            problem = str(failed) or type(failed).__name__
        answers.write(json.dumps({"problem": problem, "bytes": len(whole)}).encode() + b"\n")
        answers.write(whole)
        answers.flush()


class _Model:
    """A model directory that may be changed by its owner at any time, while its parts are asked for by digest."""

    def __init__(self, directory: Path, digest_cache: Path) -> None:
        self._directory = directory
        self._digest_cache = digest_cache
        self._opened: tuple[Checkpoint, str, tuple[tuple[int, ...], ...]] | None = None
        """With its digest, and what its files were then."""

    def checkpoint(self, digest: str) -> Checkpoint:
        """Raises BadCheckpoint when the model with this digest is not, or no longer, in the directory."""
        from agent.compute.checkpoint import Checkpoint
        from agent.compute.model_digest import model_digest

        state = self._state()
        if self._opened is None or self._opened[2] != state:
            checkpoint = Checkpoint.open(self._directory)
            self._opened = (checkpoint, model_digest(self._directory, self._digest_cache), state)
        checkpoint, found, _ = self._opened
        if found != digest:
            raise BadCheckpoint(
                f"{self._directory} was changed: its digest is {found[:12]}, {digest[:12]} is being served; "
                "stop serving and start again"
            )
        return checkpoint

    def _state(self) -> tuple[tuple[int, ...], ...]:
        """Of all files, by name: what changes with their contents."""
        files = [self._directory / "config.json", *sorted(self._directory.glob("*.safetensors"))]
        seen = [file.stat() for file in files if file.exists()]
        return tuple((each.st_size, each.st_mtime_ns, each.st_ctime_ns, each.st_ino) for each in seen)


def _whole_file(write_to: Callable[[Callable[[int, memoryview], int]], int]) -> bytes:
    """What would have been written."""
    whole = bytearray()

    def write(_: int, data: memoryview) -> int:
        whole.extend(data)
        return len(data)

    write_to(write)
    return bytes(whole)


def main(directory: str, root: str, limit_bytes: str) -> int:
    """Entry of the child process; it reads jobs from its standard input."""
    os.nice(NICENESS)
    make_parts(Path(directory), LayerStore(Path(root), int(limit_bytes)), sys.stdin.buffer, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
