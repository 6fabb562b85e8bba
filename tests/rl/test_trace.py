"""Traces: what is written is read, and what is wrong is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.channel import MAX_SEED, MAX_STATES, Channel, ChannelState
from rl.channel import fading_channel
from rl.trace import BadTrace, dump_trace, parse_trace

states = st.builds(
    ChannelState,
    loss=st.floats(0, 1),
    sigma=st.floats(0, 1e6),
    gain=st.floats(0, 1e3),
    snr_db=st.none() | st.floats(-200, 200),
    m=st.none() | st.floats(0.5, 1e6),
)
channels = st.builds(
    Channel,
    st.lists(states, min_size=1, max_size=5).map(tuple),
    seed=st.integers(0, MAX_SEED),
    coherence_tokens=st.integers(1, 1000),
    granularity=st.sampled_from(["element", "packet"]),
    packet_bytes=st.integers(64, 65507),
    interleaved=st.booleans(),
    concealment=st.sampled_from(["zero", "rescale", "mean", "previous", "lmmse"]),
    protection=st.sampled_from(["none", "repeat", "int8"]),
)


@given(channels)
def test_what_is_written_is_read(channel: Channel) -> None:
    assert parse_trace(dump_trace(channel)) == channel


def test_the_longest_trace_is_within_the_limit() -> None:
    channel = fading_channel(1.0, MAX_STATES, np.random.default_rng(0), snr_db=12.345678901234567)
    assert parse_trace(dump_trace(channel)) == channel


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 2}, "schema"),
        ({"schema": True}, "schema"),
        ({"states": []}, "0 states"),
        ({"states": [{"loss": 2}]}, "states[0]"),
        ({"states": [{}, {"los": 0.1}]}, "states[1]: los is none of"),
        ({"states": [{"m": 0.1}]}, "Nakagami"),
        ({"states": [7]}, "states[0]"),
        ({"states": None}, "states"),
        ({"seed": -1}, "seed"),
        ({"coherence_tokens": 0}, "coherence"),
        ({"packet_bytes": 1}, "packets"),
        ({"concealment": "hope"}, "concealment"),
        ({"time": 3}, "time is none of"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], named: str) -> None:
    raw = json.loads(dump_trace(Channel((ChannelState(loss=0.1),)))) | change
    with pytest.raises(BadTrace) as caught:
        parse_trace(json.dumps(raw))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "{}", "[" * 100_000, "x" * (MAX_STATES * 256 + 1), "\ud800", '{"a": NaN}']
)
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(BadTrace):
        parse_trace(text)
