"""Log lines: JSON with a priority under the journal, key=value elsewhere; fields survive, values are quoted."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.log import JsonLines, KeyValue, is_journal, priority


def record(level: int = logging.INFO, event: str = "layers_loaded", **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"levelno": level, "levelname": logging.getLevelName(level), "msg": event, "name": "a.b"}
    )
    vars(made).update(fields)
    return made


def test_json_line_carries_event_and_fields() -> None:
    line = json.loads(JsonLines({"device": "nano"}).format(record(layers="[0, 12)", seconds=1.5, path=Path("x"))))
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "layers_loaded",
        "level": "info",
        "logger": "a.b",
        "device": "nano",
        "layers": "[0, 12)",
        "seconds": 1.5,
        "path": "x",
    }


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_journal_lines_start_with_their_priority(level: int, number: int) -> None:
    text = JsonLines({}, with_priority=True).format(record(level))
    assert priority(level) == number
    assert text.startswith(f"<{number}>" + "{")
    assert "time" not in json.loads(text[3:])


def test_a_record_is_always_one_json_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        text = JsonLines({}).format(record(exc_info=sys.exc_info(), detail="a\nb"))
    assert "\n" not in text
    assert "second" in json.loads(text)["traceback"]


@pytest.mark.parametrize(
    ("value", "written"),
    [("plain", "plain"), ("[0, 12)", '"[0, 12)"'), ("a=b", '"a=b"'), ("", '""'), (0.1234567, "0.123457"), (3, "3")],
)
def test_key_value_quotes_only_what_needs_it(value: object, written: str) -> None:
    text = KeyValue({"device": "nano"}).format(record(layers=value))
    assert text.split(" ", 1)[1] == f"info    layers_loaded device=nano layers={written}"


def test_only_the_stream_named_by_systemd_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as stream:
        status = os.fstat(stream.fileno())
        assert is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, stream)
        assert not is_journal({"JOURNAL_STREAM": "1:2"}, stream)
        assert not is_journal({}, stream)


def test_configure_writes_to_stderr_once() -> None:
    code = (
        "import logging; from agent.log import configure\n"
        "configure('debug', 'json', device='d'); configure('info', 'json')\n"
        "logging.getLogger('x').info('up', extra={'port': 5}); logging.getLogger('x').debug('hidden')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["port"] == 5
