from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgectl
from agent.errors import AgentError
from edgectl.failures import FAILURES, ExitCode, failure_of
from planner.errors import PlannerError

SOURCES = sorted(Path(edgectl.__path__[0]).rglob("*.py"))


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


@pytest.mark.parametrize("error", [*family(AgentError), *family(PlannerError)], ids=lambda error: error.__name__)
def test_every_error_of_agent_and_planner_has_a_row(error: type[Exception]) -> None:
    assert error.code in FAILURES  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_code_written_in_edgectl_has_a_row(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    codes = [
        call.args[0].value
        for call in calls
        if ast.unparse(call.func) in {"ApiError", "EngineError"}
        and call.args
        and isinstance(call.args[0], ast.Constant)
    ]
    assert set(codes) <= set(FAILURES)


@pytest.mark.parametrize("code", sorted(FAILURES))
def test_rows_are_fit_to_show(code: str) -> None:
    row = FAILURES[code]
    assert 400 <= row.http_status <= 599
    assert row.message
    assert not row.message.endswith(".")
    assert "/" not in row.message.replace("/v1/", "")
    assert (row.kind == "server_error") == (row.http_status >= 500)
    assert row.retry_after_s is None or row.retry_after_s >= 1
    assert row.exit_code is not ExitCode.OK


def test_unavailable_tells_when_to_come_back() -> None:
    for code in ("no_agent", "not_ready", "queue_full"):
        assert FAILURES[code].retry_after_s is not None


def test_a_newer_agents_code_is_an_internal_error() -> None:
    assert failure_of("invented_tomorrow") is FAILURES["internal_error"]


def test_exit_codes_are_distinct_and_leave_clicks_usage_code_alone() -> None:
    assert len({int(code) for code in ExitCode}) == len(ExitCode)
    assert int(ExitCode.USAGE) == 2
    assert all(row.exit_code is not ExitCode.USAGE for row in FAILURES.values())
