"""Smoothing against RFC 6298 computed by hand, unanswered pings, and the split of wire time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.round_trip import RoundTrip, split_wire_s

MS = 1_000_000


def measured(*samples_ms: int) -> RoundTrip:
    hop = RoundTrip()
    for number, sample_ms in enumerate(samples_ms):
        sent_ns = number * 1000 * MS
        hop.sent(sent_ns)
        assert hop.received(sent_ns, sent_ns + sample_ms * MS)
    return hop


def test_the_first_sample_and_the_next_follow_the_rfc() -> None:
    assert (measured(80).smoothed_s, measured(80).variance_s) == (0.08, 0.04)
    second = measured(80, 160)
    assert second.variance_s == pytest.approx(0.75 * 0.04 + 0.25 * 0.08)
    assert second.smoothed_s == pytest.approx(7 / 8 * 0.08 + 1 / 8 * 0.16)


def test_a_steady_link_is_measured_exactly() -> None:
    hop = measured(*[5] * 100)
    assert hop.smoothed_s == pytest.approx(0.005)
    assert hop.variance_s == pytest.approx(0.0, abs=1e-9)


def test_only_the_outstanding_ping_counts() -> None:
    hop = RoundTrip()
    assert not hop.received(0, 5 * MS)  # a peer that answers what was not asked
    hop.sent(10 * MS)
    hop.sent(20 * MS)
    assert not hop.received(10 * MS, 30 * MS)
    assert hop.received(20 * MS, 30 * MS)
    assert not hop.received(20 * MS, 90 * MS)
    assert hop.smoothed_s == pytest.approx(0.01)
    hop.sent(100 * MS)
    hop.reset()
    assert not hop.received(100 * MS, 101 * MS)
    assert hop.smoothed_s == pytest.approx(0.01)


@given(st.floats(-1.0, 100.0), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_the_parts_add_up(wire_s: float, round_trips_s: list[float]) -> None:
    parts = split_wire_s(wire_s, round_trips_s)
    assert len(parts) == len(round_trips_s)
    assert sum(parts) == pytest.approx(max(wire_s, 0.0))
    assert all(part >= 0.0 for part in parts)


def test_a_slow_hop_gets_its_share() -> None:
    assert split_wire_s(0.04, [0.001, 0.003]) == pytest.approx([0.01, 0.03])
    assert split_wire_s(0.04, [0.0, 0.0]) == pytest.approx([0.02, 0.02])
