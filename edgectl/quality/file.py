"""A file of quality measurements as they come in: one line of JSON each, so that what was interrupted goes on.

The first line says what all others have in common; another collection's file is refused. A last line that was cut off
in writing is dropped.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO

from agent.errors import ConfigError
from edgectl.quality.points import QualityPoint

FORMAT = "edgectl quality measurements 1"
MAX_FILE_BYTES = 256 << 20
"""A million runs are 150 MB."""
_BEGINNING = b'{"format":'
_POINT_FIELDS = tuple(each.name for each in fields(QualityPoint))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run at one point."""

    point: QualityPoint
    run: int
    perplexity: float
    """NaN or infinity where the model broke."""


class QualityFile:
    """Open for reading what is there and adding to it; nobody else adds meanwhile."""

    def __init__(self, path: Path, subject: Mapping[str, object]) -> None:
        """Raises ConfigError for a file that cannot be written, is in use, or is of something else than `subject`."""
        self._path = path
        self.measured: dict[tuple[QualityPoint, int], float] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as problem:
            raise ConfigError(f"--out {path}: {problem.strerror}") from problem
        try:
            self._read(dict(subject))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> QualityFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, measurement: Measurement) -> None:
        """Written before it returns: an interruption costs no finished run."""
        self.measured[measurement.point, measurement.run] = measurement.perplexity
        self._write({**asdict(measurement.point), "run": measurement.run, "ppl": _spelled(measurement.perplexity)})

    def _write(self, line: Mapping[str, object]) -> None:
        try:
            self._file.write(json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as problem:
            raise ConfigError(f"--out {self._path}: {problem.strerror}") from problem

    def _read(self, subject: dict[str, object]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise ConfigError(f"--out {self._path}: another process is adding to it") from problem
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"--out {self._path}: no regular file; name a new one")
        if status.st_size > MAX_FILE_BYTES:
            raise ConfigError(f"--out {self._path}: more than {MAX_FILE_BYTES >> 20} MiB; name a new file")
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole == 0 and data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
            # Nothing of ours was interrupted here.
            raise ConfigError(f"--out {self._path}: no file of quality measurements; name a new file")
        lines = data[:whole].decode("utf-8", errors="replace").splitlines()
        if lines:
            self._check_subject(lines[0], subject)
            for number, line in enumerate(lines[1:], 2):
                found = self._parsed(line, number)
                self.measured[found.point, found.run] = found.perplexity
        self._file.truncate(whole)
        if not lines:
            self._write({"format": FORMAT, **subject})

    def _check_subject(self, line: str, subject: dict[str, object]) -> None:
        try:
            head = json.loads(line)
        except (ValueError, RecursionError):
            head = None
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ConfigError(f"--out {self._path}: no file of quality measurements; name a new file")
        expected = json.loads(json.dumps(subject))
        for name in {**expected, **head}:
            if name != "format" and head.get(name) != expected.get(name):
                raise ConfigError(
                    f"--out {self._path}: made with {name} {head.get(name)!r}, not {expected.get(name)!r}; "
                    "name a new file, or ask for the same"
                )

    def _parsed(self, line: str, number: int) -> Measurement:
        """Raises ConfigError naming the line."""
        try:
            value = json.loads(line)
            point = QualityPoint(**{name: _number(value[name], name) for name in _POINT_FIELDS})  # type: ignore[arg-type]
            run, perplexity = value["run"], float(value["ppl"])
            if not isinstance(run, int) or run < 0 or not (math.isnan(perplexity) or perplexity > 0):
                raise ValueError(f"run {run!r}, ppl {perplexity!r}")
        except (ValueError, TypeError, KeyError, RecursionError) as problem:
            raise ConfigError(
                f"--out {self._path}: line {number} is no measurement ({problem}); remove it or name a new file"
            ) from problem
        return Measurement(point, run, perplexity)


def _number(value: object, name: str) -> float | int | None:
    if name in ("m", "snr_db") and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if name == "split" else (int, float)):
        raise ValueError(f"{name} {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} {value!r}")
    return value if name == "split" else float(value)


def _spelled(value: float) -> float | str:
    """JSON has no NaN and no infinity: their names."""
    return value if math.isfinite(value) else str(value)
