"""The command line as a person uses it, against a real HTTP server over a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from typer.testing import CliRunner, Result

from edgectl.cli import app
from tests.fakes.fake_engine import FakeEngine
from tests.fakes.http_server import Served, serving


def edgectl(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """One run of the command; exit code, stdout and stderr are in the result."""
    # NO_COLOR and a width, so that click's usage errors read the same everywhere.
    return CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "COLUMNS": "200", **(env or {})})


def edgectl_against(
    engine: FakeEngine, *arguments: str, while_running: Callable[[Served], None] | None = None
) -> Result:
    """The command with --url of a server over `engine`, which lives as long as the command runs."""

    async def run() -> Result:
        async with serving(engine) as served:
            command = asyncio.create_task(asyncio.to_thread(edgectl, *arguments, "--url", served.url))
            if while_running is not None:
                while_running(served)
            return await command

    return asyncio.run(run())
