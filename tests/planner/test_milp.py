"""HiGHS and the planner agree, on small problems with everything different and on a cluster."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest

from planner.latency import cheapest_route
from planner.milp import cheapest_by_milp
from tests.fakes.random_problems import cluster_problem, random_ceiling, random_problem

INSTANCES = 200 if "EDGE_ORACLE" in os.environ else 40


@pytest.mark.parametrize("seed", range(INSTANCES))
def test_it_agrees_with_the_planner(seed: int) -> None:
    problem = random_problem(10_000 + seed, max_layers=14, max_devices=8)
    ceiling = random_ceiling(seed, problem) if seed % 4 == 0 else None
    expected, found = cheapest_route(problem, ceiling), cheapest_by_milp(problem, ceiling)
    assert (found is None) == (expected is None)
    if expected is not None and found is not None:
        assert found.cost == pytest.approx(expected.cost, rel=1e-7)
        assert problem.allows(found.segments)
        assert found.method == "exact"


def test_it_proves_a_cluster_of_classes() -> None:
    problem = cluster_problem(1, (1, 5, 2, 1), layers=24)
    expected, found = cheapest_route(problem), cheapest_by_milp(problem)
    assert expected is not None
    assert found is not None
    assert found.cost == pytest.approx(expected.cost, rel=1e-7)


def test_no_device_holds_anything() -> None:
    problem = cluster_problem(1, (1, 2), layers=4)
    assert cheapest_by_milp(replace(problem, memory_bytes=np.zeros(2, dtype=np.int64))) is None


def test_a_limit_that_leaves_no_time_is_said() -> None:
    problem = cluster_problem(1, (1, 5, 2, 1), layers=24)
    with pytest.raises(TimeoutError, match="no placement within"):
        cheapest_by_milp(problem, time_limit_s=1e-9)
    solution = cheapest_by_milp(problem, time_limit_s=math.inf)
    assert solution is not None
