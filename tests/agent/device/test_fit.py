"""One layer and the call beside it, from rounds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.fit import averaged, call_s, layer_timing
from agent.device.rounds import RoundTimes
from planner.profile import Timing

LENGTHS = st.sampled_from([(1, 3), (3, 9), (8, 24), (1, 2)])


def rounds(layer: float, call: float, lengths: tuple[int, int], noise: float = 0.0, seed: int = 0) -> RoundTimes:
    random = np.random.Generator(np.random.PCG64(seed))
    factors = 1 + noise * random.exponential(size=(2, 101))
    parts = ((call + length * layer) * row for length, row in zip(lengths, factors, strict=True))
    return RoundTimes(tuple(part.tolist() for part in parts))


@given(layer=st.floats(1e-5, 1.0), call=st.floats(0.0, 1e-3), lengths=LENGTHS)
def test_exact_times_give_call_and_layer_back(layer: float, call: float, lengths: tuple[int, int]) -> None:
    times = rounds(layer, call, lengths)
    found = call_s([times], lengths)
    assert found == pytest.approx(call, abs=1e-9 * max(1.0, layer))
    assert layer_timing(times, lengths, found).ms == pytest.approx(1e3 * layer, rel=1e-6)


@given(seed=st.integers(0, 1000), lengths=LENGTHS, call=st.floats(0.0, 0.01))
def test_a_stage_as_long_as_both_ranges_is_predicted_as_measured(
    seed: int, lengths: tuple[int, int], call: float
) -> None:
    times = rounds(0.002, 0.0004, lengths, noise=0.2, seed=seed)
    call = min(call, *times.ranges[0])
    predicted_ms = 2e3 * call + sum(lengths) * layer_timing(times, lengths, call).ms
    assert predicted_ms == pytest.approx(1e3 * np.median(np.sum(times.ranges, axis=0)), rel=1e-9)


@given(seed=st.integers(0, 1000))
def test_the_call_is_never_negative_nor_longer_than_a_run(seed: int) -> None:
    times = rounds(0.002, 0.0, (1, 3), noise=3.0, seed=seed)
    assert 0.0 <= call_s([times], (1, 3)) <= min(times.ranges[0])


def test_ranges_that_cannot_tell_the_call_give_none() -> None:
    assert call_s([rounds(0.002, 0.001, (2, 2))], (2, 2)) == 0.0
    assert call_s([RoundTimes(([0.1, 0.2],))], (1,)) == 0.0
    assert call_s([], (1, 3)) == 0.0


def test_layers_loaded_one_after_another_are_averaged() -> None:
    found = averaged([Timing(ms=1.0, p95_ms=2.0, samples=5, outliers=1), Timing(ms=3.0, p95_ms=4.0, samples=7)])
    assert found == Timing(ms=2.0, p95_ms=4.0, samples=12, outliers=1)
    with pytest.raises(ValueError, match="no timings"):
        averaged([])
