"""Histograms against NumPy as oracle; snapshots travel through the wire format unchanged."""

from __future__ import annotations

import math
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.telemetry import (
    BUCKETS_S,
    Histogram,
    TelemetryRecorder,
    count,
    difference,
    mean,
    quantile,
)
from agent.errors import RefusalReason
from agent.wire.link_report import LinkObservation, emulated_observation
from agent.wire.messages import Telemetry
from agent.wire.round_trip import RoundTrip

durations = st.lists(st.floats(1e-5, 90.0), min_size=1, max_size=60)
STEP = BUCKETS_S[1] / BUCKETS_S[0]


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    return histogram


def test_bounds_run_from_ten_microseconds_to_a_hundred_seconds() -> None:
    assert BUCKETS_S[0] == pytest.approx(1e-5)
    assert BUCKETS_S[-1] == pytest.approx(100.0)
    assert np.diff(np.log(BUCKETS_S)) == pytest.approx(math.log(STEP))


@given(durations)
def test_counts_are_those_of_numpy(values: list[float]) -> None:
    edges = np.searchsorted(np.array(BUCKETS_S), values, side="left")
    expected = np.bincount(edges, minlength=len(BUCKETS_S) + 1)
    assert filled(values).snapshot().counts == tuple(expected)


@given(durations, st.floats(0, 1))
def test_a_quantile_is_off_by_one_bucket_at_most(values: list[float], fraction: float) -> None:
    exact = float(np.quantile(values, fraction, method="inverted_cdf"))
    estimate = quantile(filled(values).snapshot(), fraction)
    assert exact / STEP * (1 - 1e-9) <= estimate <= exact * STEP * (1 + 1e-9)


@given(durations)
def test_the_mean_is_exact(values: list[float]) -> None:
    assert mean(filled(values).snapshot()) == pytest.approx(np.mean(values))


def test_extremes_stay_in_the_outer_buckets() -> None:
    snapshot = filled([0.0, 1e-9, 1e6]).snapshot()
    assert (snapshot.counts[0], snapshot.counts[-1]) == (2, 1)
    assert quantile(snapshot, 1.0) == BUCKETS_S[-1]
    assert quantile(snapshot, 0.5) <= BUCKETS_S[0]


def test_an_empty_histogram_has_no_mean_and_no_quantile() -> None:
    empty = Histogram().snapshot()
    assert math.isnan(mean(empty))
    assert math.isnan(quantile(empty, 0.5))
    with pytest.raises(ValueError, match="outside 0 to 1"):
        quantile(empty, 1.5)


def test_a_snapshot_holds_what_was_recorded_and_nothing_else() -> None:
    recorder = TelemetryRecorder()
    recorder.observe("decode_compute_seconds", 0.25)
    recorder.add("frames_sent")
    recorder.add("bytes_sent", 8192)
    recorder.refused(RefusalReason.CRC)
    recorder.refused(RefusalReason.CRC)
    snapshot = recorder.snapshot()
    assert list(snapshot.histograms) == ["decode_compute_seconds"]
    assert snapshot.counters == {"frames_sent": 1, "bytes_sent": 8192, "frames_refused:crc": 2}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Telemetry) == snapshot


def test_a_snapshot_does_not_change_afterwards() -> None:
    recorder = TelemetryRecorder()
    recorder.observe("decode_held_seconds", 1.0)
    before = recorder.snapshot()
    recorder.observe("decode_held_seconds", 1.0)
    assert count(before.histograms["decode_held_seconds"]) == 1


@given(durations, durations)
def test_difference_is_what_came_in_between(first: list[float], second: list[float]) -> None:
    recorder = TelemetryRecorder()
    for value in first:
        recorder.observe("decode_wire_seconds", value)
    recorder.add("frames_sent", len(first))
    earlier = recorder.snapshot()
    for value in second:
        recorder.observe("decode_wire_seconds", value)
    recorder.add("frames_sent", len(second))
    period = difference(recorder.snapshot(), earlier)
    assert period.counters == {"frames_sent": len(second)}
    assert period.histograms["decode_wire_seconds"].counts == filled(second).snapshot().counts
    assert period.histograms["decode_wire_seconds"].sum == pytest.approx(sum(second), abs=1e-9 + 1e-9 * sum(first))


def test_after_a_restart_the_difference_is_the_new_total() -> None:
    old, new = TelemetryRecorder(), TelemetryRecorder()
    old.add("frames_sent", 100)
    new.add("frames_sent", 3)
    assert difference(new.snapshot(), old.snapshot()) == new.snapshot()
    old.observe("decode_held_seconds", 1.0)
    new.add("frames_sent", 300)
    assert difference(new.snapshot(), old.snapshot()) == new.snapshot()


def answered(latest_ms: int) -> RoundTrip:
    hop = RoundTrip()
    hop.sent(0)
    hop.received(0, latest_ms * 1_000_000)
    return hop


def test_a_ping_is_a_duration_and_a_round_trip_of_its_peer() -> None:
    recorder = TelemetryRecorder()
    recorder.round_trip("b", answered(20))
    measured = LinkObservation("c", rtt_ms=3.0)
    recorder.see_links([emulated_observation("b", 1e6), measured])
    snapshot = recorder.snapshot()
    assert mean(snapshot.histograms["hop_rtt_seconds"]) == pytest.approx(0.02)
    assert [(link.peer, link.rtt_ms) for link in snapshot.links] == [("b", pytest.approx(20.0)), ("c", 3.0)]


def test_a_peer_that_left_takes_its_round_trip_along() -> None:
    recorder = TelemetryRecorder()
    recorder.round_trip("b", answered(20))
    recorder.see_links([])
    assert recorder.snapshot().links == ()
    recorder.see_links([emulated_observation("b", 1e6)])
    assert recorder.snapshot().links[0].rtt_ms is None


def test_of_a_period_the_links_are_those_at_its_end() -> None:
    recorder = TelemetryRecorder()
    recorder.see_links([LinkObservation("b", rtt_ms=1.0)])
    earlier = recorder.snapshot()
    recorder.see_links([LinkObservation("b", rtt_ms=2.0)])
    assert difference(recorder.snapshot(), earlier).links == (LinkObservation("b", rtt_ms=2.0),)


def test_recording_is_cheap() -> None:
    """Well under a microsecond on any machine of ours; the bound leaves room for a busy one."""
    recorder = TelemetryRecorder()
    fastest = math.inf
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(1000):
            recorder.observe("decode_compute_seconds", 0.012)
        fastest = min(fastest, (time.perf_counter() - start) / 1000)
    assert fastest < 5e-6
