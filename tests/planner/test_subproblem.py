"""A problem with fewer devices keeps the numbers of its classes and allows what is left."""

from __future__ import annotations

import math

import pytest

from planner.problem import Segment
from planner.subproblem import limited
from tests.fakes.random_pipelines import placements
from tests.fakes.random_problems import cluster_problem


def test_what_is_left_is_what_uses_no_more():
    whole = cluster_problem(1, (1, 2, 2), layers=5, capacity=4.0)
    for at_most in ((1, 0, 0), (1, 2, 0), (1, 0, 1), (1, 1, 2), (1, 9, 9)):
        part = limited(whole, at_most)
        within = [
            each.segments
            for each in placements(whole)
            if all(sum(s.device_class == k for s in each.segments) <= most for k, most in enumerate(at_most))
            and whole.allows(each.segments)
        ]
        assert [each.segments for each in placements(part) if part.allows(each.segments)] == within
        assert all(part.cost_of(segments) == whole.cost_of(segments) for segments in within)


def test_the_source_stays():
    whole = cluster_problem(1, (1, 2), layers=3)
    assert math.isinf(limited(whole, (1, 0)).cost_of((Segment(0, 0, 1), Segment(1, 1, 3))))
    with pytest.raises(ValueError, match="source, class 0"):
        limited(whole, (0, 2))
