"""Every script of this folder prints what it says; `pytest --rewrite-golden` writes down what it prints now."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.golden.script import ScriptError, run_script

FOLDER = Path(__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path, request: pytest.FixtureRequest) -> None:
    expected = path.read_text(encoding="utf-8")
    printed = run_script(expected)
    if printed == expected:
        return
    if request.config.getoption("--rewrite-golden"):
        path.write_text(printed, encoding="utf-8")
        return
    changes = "\n".join(difflib.unified_diff(expected.splitlines(), printed.splitlines(), "expected", "printed"))
    pytest.fail(
        f"{path.name} prints something else:\n{changes}\n\n"
        "`pytest tests/golden --rewrite-golden` takes this over. Commit only what you can explain.",
        pytrace=False,
    )


def test_there_are_scripts() -> None:
    assert SCRIPTS


def test_a_changed_line_is_seen() -> None:
    text = SCRIPTS[0].read_text(encoding="utf-8")
    lines = text.splitlines()
    lines[lines.index("----") + 1] += " or not"
    assert run_script("\n".join(lines)) == text


@pytest.mark.parametrize("command", ["explode a", "deliver a", "deliver a b", "tick", "cancel s1 where=b"])
def test_a_wrong_command_is_an_error(command: str) -> None:
    with pytest.raises(ScriptError, match=command):
        run_script(f"{command}\n----\nok\n")
