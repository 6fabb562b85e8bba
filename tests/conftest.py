"""Test settings for the whole tree: hypothesis is deterministic here and random, with more examples, in a campaign."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from edgectl.one_thread import use_one_thread

use_one_thread()  # before any test module loads NumPy

settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile(
    "campaign",
    deadline=None,
    max_examples=int(os.environ.get("EDGE_CAMPAIGN_EXAMPLES", "3000")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("EDGE_HYPOTHESIS_PROFILE", "suite"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write what the scripts of tests/golden print now into them; commit only what you can explain",
    )


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that is run inside a test sets logging up for its process, which is everybody's here."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
