"""The one place where logging is set up: key=value on a terminal, JSON lines with a priority under systemd.

A line is an event name and fields: `logger.info("layers_loaded", extra={"layers": "[0, 12)", "seconds": 1.4})`.
info is life-cycle, debug is per step, warning is degraded and handled, error means a session was lost. Never log
prompts, tokens, tensors or keys. Measurements go to `agent.device.telemetry`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Literal, TextIO

LogFormat = Literal["auto", "json", "text"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def configure(level: str = "info", log_format: LogFormat = "auto", **fixed: str) -> None:
    """Send every log line of this process to stderr; `fixed` fields (device, process) go on each of them."""
    under_journal = is_journal(os.environ, sys.stderr)
    as_json = log_format == "json" or (log_format == "auto" and under_journal)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(fixed, with_priority=under_journal) if as_json else KeyValue(fixed))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def is_journal(env: Mapping[str, str], stream: TextIO) -> bool:
    """Whether `stream` is the journal's socket: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return env.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def priority(level: int) -> int:
    """The syslog priority of a logging level, 7 for debug."""
    return next((value for least, value in _PRIORITIES if level >= least), 7)


class JsonLines(logging.Formatter):
    """One JSON object per line; with_priority puts `<N>` before it, which the journal takes as the priority."""

    def __init__(self, fixed: Mapping[str, str], *, with_priority: bool = False) -> None:
        super().__init__()
        self._fixed = dict(fixed)
        self._with_priority = with_priority

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"event": record.getMessage(), "level": record.levelname.lower()}
        if not self._with_priority:  # the journal stamps lines itself
            line["time"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line |= {"logger": record.name, **self._fixed, **_fields(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(line, default=str, ensure_ascii=False)
        return f"<{priority(record.levelno)}>{text}" if self._with_priority else text


class KeyValue(logging.Formatter):
    """`12:03:07 info  layers_loaded device=nano layers="[0, 12)" seconds=1.4`"""

    def __init__(self, fixed: Mapping[str, str]) -> None:
        super().__init__()
        self._fixed = dict(fixed)

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        pairs = {**self._fixed, **_fields(record)}
        fields = "".join(f" {key}={_quoted(value)}" for key, value in pairs.items())
        line = f"{stamp} {record.levelname.lower():<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)
