"""Comparisons: the order that must come out, and the numbers beside it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from edgectl.learning.comparison import compare, comparison_as_json, describe_comparison
from edgectl.learning.worlds import surface_of, world_of
from rl.rollout import always, at_random
from rl.split_world import ACTIONS_3


@pytest.fixture(scope="module")
def found() -> list[Any]:
    surface = surface_of(None)
    decides = {"up": [always(1)], "noise": [at_random(np.random.default_rng(seed)) for seed in range(3)]}
    return cast(list[Any], compare(surface, world_of(surface, "drift", ACTIONS_3), decides, 400, 0))


def test_nobody_beats_the_optimum_and_random_is_at_zero(found: list[Any]) -> None:
    by_name = {each.name: each for each in found}
    assert found[-1].name in ("optimum", "best stationary")
    assert by_name["optimum"].optimal_room == pytest.approx(1.0)
    assert by_name["random"].optimal_room == pytest.approx(0.0)
    assert by_name["best stationary"].stationary_room == pytest.approx(1.0)
    assert abs(by_name["noise"].optimal_room) < 0.3
    assert [each.mean for each in found] == sorted(each.mean for each in found)
    static = next(each for each in found if each.name.startswith("static, split"))
    assert static.mean < by_name["optimum"].mean


def test_only_policies_of_several_seeds_have_an_interval(found: list[Any]) -> None:
    assert {each.name for each in found if each.half is not None} == {"noise"}


def test_it_is_shown_and_told(found: list[Any]) -> None:
    text = describe_comparison(found, 400)
    assert "best stationary" in text
    assert "400 common starts" in text
    assert "±" in text
    rows = comparison_as_json(found, 400)["controllers"]
    assert [row["name"] for row in rows] == [each.name for each in found]
