"""What is printed where: data on stdout, the rest on stderr, and tables that line up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import (
    CommandFailure,
    emit,
    emit_json,
    mib,
    printable,
    progress_bar,
    say,
    say_failure,
    show,
    table,
    write_json,
)


def test_data_and_words_go_to_different_streams(capsys: pytest.CaptureFixture[str]) -> None:
    emit("a", end="")
    emit_json({"b": "ü"})
    say("c")
    printed = capsys.readouterr()
    assert printed.out == 'a{"b":"ü"}\n'
    assert printed.err == "c\n"


def test_a_terminal_is_not_told_what_to_do_by_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    show("a\x1b]0;title\x07b\tc\n")
    say("\x9b2J\r\x7f\u202e ü → 日本")
    printed = capsys.readouterr()
    assert printed.out == "a\\x1b]0;title\\x07b\tc\n\n"
    assert printed.err == "\\x9b2J\\r\\x7f\\u202e ü → 日本\n"
    assert "\n".join(map(chr, range(0x20, 0x7F))) == printable("\n".join(map(chr, range(0x20, 0x7F))))


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "two\nlines", "none": None}
    emit_json(value)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == value


def test_a_hint_stands_after_a_blank_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_failure("no key", "make one")
    assert capsys.readouterr().err == "error: no key\n\nhint: make one\n"
    say_failure("no key")
    assert capsys.readouterr().err == "error: no key\n"


def test_numbers_stand_to_the_right() -> None:
    assert table(("name", "ms"), [("a", "1.50"), ("long-name", "-"), ("b", "22.00")]) == (
        "name          ms\na           1.50\nlong-name      -\nb          22.00"
    )


@pytest.mark.parametrize(("size", "text"), [(0, "0 MiB"), (1, "1 MiB"), (1 << 20, "1 MiB"), (1 << 31, "2,048 MiB")])
def test_sizes_are_never_shown_smaller_than_they_are(size: int, text: str) -> None:
    assert mib(size) == text


def test_a_failure_takes_exit_code_and_hint_from_the_table() -> None:
    failure = CommandFailure.of("out_of_memory", "12 MiB short")
    assert (failure.exit_code, str(failure)) == (ExitCode.MEMORY, "12 MiB short")
    assert "--quantize" in failure.hint


def test_no_bar_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_document_that_cannot_be_written_names_flag_and_file(tmp_path: Path) -> None:
    write_json(tmp_path / "found.json", {"place": "Zürich"})
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == {"place": "Zürich"}
    with pytest.raises(ConfigError, match=r"--out .*missing/found.json: No such file"):
        write_json(tmp_path / "missing" / "found.json", {})
