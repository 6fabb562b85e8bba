"""Repeating, and what many durations say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.timing import SHORTEST_MS, Effort, repeat, scaled, timing

SAMPLES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


@given(SAMPLES)
def test_the_median_and_the_percentile_are_numpys(samples: list[float]) -> None:
    found = timing(samples)
    assert found.ms == pytest.approx(1e3 * np.median(samples))
    assert found.p95_ms == pytest.approx(1e3 * np.percentile(samples, 95, method="inverted_cdf"))
    assert found.samples == len(samples)


@given(SAMPLES)
def test_outliers_are_those_beyond_three_scaled_deviations(samples: list[float]) -> None:
    median = np.median(samples)
    deviation = 1.4826 * np.median(np.abs(np.array(samples) - median))
    assert timing(samples).outliers == sum(abs(sample - median) > 3 * deviation for sample in samples)


def test_one_slow_run_is_an_outlier_and_moves_nothing() -> None:
    found = timing([0.010, 0.011, 0.009, 0.010, 0.012, 0.500])
    assert found.ms == pytest.approx(10.5)
    assert found.outliers == 1


def test_no_samples_are_no_timing() -> None:
    with pytest.raises(ValueError, match="no samples"):
        timing([])


def test_a_clock_that_saw_nothing_still_gives_a_time() -> None:
    assert timing([0.0, 0.0]).ms == SHORTEST_MS


def test_scaled_counts_the_same_runs() -> None:
    whole = timing([0.2, 0.4, 0.6])
    part = scaled(whole, 0.25)
    assert (part.ms, part.p95_ms, part.samples) == (pytest.approx(100), pytest.approx(150), 3)


@pytest.mark.parametrize(
    ("run_s", "effort", "expected"),
    [
        (1.0, Effort(seconds=10.0), 8),
        (10.0, Effort(seconds=1.0), 3),
        (0.001, Effort(seconds=10.0, most=50), 50),
        (1.0, Effort(seconds=0.0, warm_up=0, fewest=1), 1),
    ],
)
def test_runs_fill_the_time_but_are_neither_too_few_nor_too_many(run_s: float, effort: Effort, expected: int) -> None:
    now_s, runs = 0.0, 0

    def run() -> None:
        nonlocal now_s, runs
        now_s, runs = now_s + run_s, runs + 1

    assert repeat(run, effort, lambda: now_s) == expected
    assert runs == expected + min(effort.warm_up, 1 if run_s >= effort.seconds else 2)
