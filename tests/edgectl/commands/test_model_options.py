"""The options that two commands share offer exactly what planner.types names."""

from __future__ import annotations

from typing import get_args

import pytest

from planner.types import BoundaryType, Quantization
from tests.fakes.command_line import edgectl


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_help_lists_every_choice(command: str) -> None:
    text = edgectl(command, "--help").stdout
    for choice in (*get_args(Quantization), *get_args(BoundaryType)):
        assert choice in text
    for option in ("--model", "--quantize", "--block-size", "--boundary", "--context"):
        assert option in text
