"""How long decisions took, in buckets."""

from __future__ import annotations

import pytest

from edgectl.adaptive.report import DECISION_BUCKETS_S, DecisionTimes


def test_a_time_is_in_the_first_bucket_that_is_not_less() -> None:
    times = DecisionTimes()
    assert times.mean_s is None
    for seconds in (0.0, 1e-5, 1.1e-5, 1e-3, 1.0):
        times.observe(seconds)
    assert times.counts[0] == 2
    assert times.counts[1] == 1
    assert times.counts[DECISION_BUCKETS_S.index(1e-3)] == 1
    assert times.counts[-1] == 1
    assert times.count == 5
    assert times.mean_s == pytest.approx(1.001021 / 5)
