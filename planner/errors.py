"""Why a plan cannot be made.

PlannerError
├── BadConfigField       a model's config.json lacks a field or holds a wrong value: the field is named
├── UnsupportedModel     an architecture we do not build: the supported ones are named
└── Infeasible           nothing fits: carries one cause per device
"""

from __future__ import annotations

from collections.abc import Sequence


class PlannerError(Exception):
    """Root of everything planner raises on purpose."""

    code = "planner_error"


class BadConfigField(PlannerError):
    code = "bad_config_field"

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"config.json: {name} {problem}")
        self.name = name


class UnsupportedModel(PlannerError):
    code = "unsupported_model"


class Infeasible(PlannerError):
    code = "out_of_memory"

    def __init__(self, summary: str, causes: Sequence[str]) -> None:
        super().__init__("\n".join([summary, *(f"  {cause}" for cause in causes)]))
        self.causes = tuple(causes)
