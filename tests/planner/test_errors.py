from __future__ import annotations

import pytest

from planner.errors import BadDevices, BadLinks, BadPlan, BadProfile, Infeasible, PlannerError, UnknownName


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BadProfile("devices[0].ms", "is odd"), "profile: devices[0].ms: is odd"),
        (BadProfile("", "is odd"), "profile: is odd"),
        (BadLinks("links[1].to", "is odd"), "links: links[1].to: is odd"),
        (BadLinks("", "is odd"), "links: is odd"),
        (BadPlan("stages", "is odd"), "plan: stages: is odd"),
        (BadPlan("", "is odd"), "plan: is odd"),
        (BadDevices("x*y", "is odd"), "devices: 'x*y': is odd"),
        (Infeasible("no room", ["a: 3 MiB lack"]), "no room\n  a: 3 MiB lack"),
    ],
)
def test_texts_say_where_and_what(error: PlannerError, text: str) -> None:
    assert str(error) == text


def test_near_names_whatever_case_and_separators() -> None:
    error = UnknownName("board", "AGX_Orin 32GB", ["agx-orin-32gb", "agx-orin-64gb", "rtx-3090"])
    assert error.near[0] == "agx-orin-32gb"
    assert str(error).startswith("unknown board 'AGX_Orin 32GB'; did you mean agx-orin-32gb")


def test_without_near_names_all_are_listed() -> None:
    assert str(UnknownName("model", "zzz", ["b", "a"])) == "unknown model 'zzz'; known: a, b"
    assert str(UnknownName("model", "", [])) == "unknown model ''; known: none"
