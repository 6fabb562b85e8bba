from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sessions import chunk_lengths as as_the_token_loop_does
from planner.device_times import DeviceTimes, chunk_lengths
from planner.errors import BadProfile
from tests.fakes.random_profiles import plain_device


@given(st.integers(1, 5000), st.integers(3, 300))
def test_prompts_are_cut_as_the_token_loop_cuts_them(prompt: int, largest: int) -> None:
    assert chunk_lengths(prompt, largest) == as_the_token_loop_does(prompt, largest)


@given(st.integers(1, 500), st.integers(1, 3))
def test_no_token_is_lost_in_tiny_chunks(prompt: int, largest: int) -> None:
    lengths = chunk_lengths(prompt, largest)
    assert sum(lengths) == prompt
    assert all(1 <= length <= max(largest, 2) for length in lengths)


def test_a_device_as_functions() -> None:
    times = DeviceTimes(plain_device("a", layer_ms=3.0, stage_ms=0.5, embedding_ms=0.25))
    assert (times.decode(1, 9), times.prefill(1), times.head(1)) == (3.0, 3.0, 1.0)
    assert (times.stage_ms, times.embedding_ms) == (0.5, 0.25)


def test_points_that_make_no_curve_name_the_device() -> None:
    device = plain_device("a")
    with pytest.raises(BadProfile, match=r"device a: two points at 0"):
        DeviceTimes(replace(device, decode=device.decode * 2))
