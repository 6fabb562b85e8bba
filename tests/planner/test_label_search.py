"""Bounds hold and proofs are proofs, whatever the width and whatever the table tracks."""

from __future__ import annotations

import math

import pytest

from planner.exhaustive import cheapest_by_enumeration
from planner.label_search import LabelSearch
from planner.latency import cheapest_route
from planner.route_search import Space, ways_on
from tests.fakes.random_problems import cluster_problem, random_ceiling, random_problem


@pytest.mark.parametrize("width", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(60))
def test_the_optimum_lies_between_bound_and_way(seed: int, width: int) -> None:
    problem = random_problem(seed, max_layers=8, ends_at_source=False)
    ceiling = random_ceiling(seed, problem) if seed % 3 == 0 else None
    space = Space(problem, ceiling)
    best = cheapest_by_enumeration(problem, ceiling)
    optimum = math.inf if best is None else best.cost
    ways = ways_on(space, space.middle[: seed % 3])
    done = LabelSearch(ways, width).run()
    assert done.bound <= optimum * (1 + 1e-9)
    assert done.cost >= optimum * (1 - 1e-9)
    if done.segments is not None:
        assert done.cost == pytest.approx(problem.cost_of(done.segments), rel=1e-9)
    if width == 1000:
        assert done.bound == done.cost == pytest.approx(optimum, rel=1e-9)


def test_only_a_cheaper_way_replaces_the_known_one() -> None:
    problem = cluster_problem(0, (1, 2, 2), layers=10)
    ways = ways_on(Space(problem), ())
    found = LabelSearch(ways, 1000).run()
    again = LabelSearch(ways, 1000, found.cost).run()
    assert again.segments is None
    assert again.bound == again.cost == found.cost


@pytest.mark.parametrize("seed", range(4))
def test_a_small_limit_bounds_and_says_so(seed: int) -> None:
    problem = cluster_problem(seed, (1, *(1,) * 11), capacity=1.3, link_spread=0.2)
    exact, bounded = cheapest_route(problem), cheapest_route(problem, state_limit=100_000)
    assert exact is not None
    assert bounded is not None
    assert exact.method == "exact"
    assert bounded.lower_bound <= exact.cost * (1 + 1e-9)
    assert bounded.cost >= exact.cost * (1 - 1e-9)
    assert problem.cost_of(bounded.segments) == bounded.cost
    assert bounded.gap < 0.1
