"""Why a plan cannot be made.

PlannerError
├── BadConfigField       a model's config.json lacks a field or holds a wrong value: the field is named
├── UnsupportedModel     an architecture we do not build: the supported ones are named
├── Infeasible           nothing fits: carries one cause per device
├── UnknownName          a model, board, testbed or device we do not know: near names are suggested
├── BadProfile           a profile that cannot be read, or not for this: the field is named
├── BadLinks             a links file with a wrong number or device: the entry is named
├── BadDevices           a list of devices that cannot be read: the entry is named
└── BadPlan              a plan file that cannot be read: the field is named
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


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


class UnknownName(PlannerError):
    """A model, board, testbed or device that we do not know; near names are suggested."""

    code = "unknown_name"

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        # Case and separators are what people get wrong most.
        folded = {_folded(candidate): candidate for candidate in names}
        near = [folded[match] for match in get_close_matches(_folded(name), folded, n=3, cutoff=0.6)]
        shown = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
        super().__init__(f"unknown {kind} {name!r}; {shown}")
        self.name = name
        self.near = tuple(near)


class BadProfile(PlannerError):
    """A profile that cannot be used for what is planned."""

    code = "bad_profile"

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"profile: {place}: {problem}" if place else f"profile: {problem}")
        self.place = place


class BadLinks(PlannerError):
    code = "bad_links"

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"links: {place}: {problem}" if place else f"links: {problem}")
        self.place = place


class BadDevices(PlannerError):
    """A list of devices that cannot be read."""

    code = "bad_devices"

    def __init__(self, entry: str, problem: str) -> None:
        super().__init__(f"devices: {entry!r}: {problem}")
        self.entry = entry


class BadPlan(PlannerError):
    code = "bad_plan"

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"plan: {place}: {problem}" if place else f"plan: {problem}")
        self.place = place


def _folded(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter == ".")
