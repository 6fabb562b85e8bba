"""Where a token's time went: differences of /metrics as our own server renders it, and the parts of a step."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.telemetry import TelemetryRecorder
from edgectl.load.stages import DeviceTotals, Total, between, stages_of, token_time_of, totals_of
from edgectl.metrics import Metrics
from tests.fakes.fake_engine import FakeEngine, Script


def rendered(**recorders: TelemetryRecorder) -> str:
    """GET /metrics of a coordinator whose devices counted this."""
    engine = FakeEngine(lambda _: Script())
    engine.device_telemetry = {name: recorder.snapshot() for name, recorder in recorders.items()}
    return Metrics(engine).render().decode()


def two_devices(a: TelemetryRecorder, b: TelemetryRecorder, rounds: int, prefills: int = 0) -> None:
    """`rounds` steps of 20 ms: 4 + 6 of compute, 1 + 2 of wait, 3 of wires, 1 behind the source, 3 at it; 4 rows."""
    for _ in range(rounds):
        a.observe("decode_compute_seconds", 0.004)
        a.observe("decode_wait_seconds", 0.001)
        a.observe("decode_wire_seconds", 0.003)
        a.observe("decode_step_seconds", 0.020)
        a.add("decode_frames_sent")
        a.add("decode_bytes_sent", 300)
        b.observe("decode_compute_seconds", 0.006)
        b.observe("decode_wait_seconds", 0.002)
        b.observe("decode_held_seconds", 0.009)
        b.add("tokens_sampled", 4)
    for _ in range(prefills):
        b.observe("prefill_compute_seconds", 0.05)


def test_totals_are_what_devices_counted_in_between() -> None:
    a, b = TelemetryRecorder(), TelemetryRecorder()
    two_devices(a, b, 5)
    before = totals_of(rendered(a=a, b=b))
    two_devices(a, b, 10, prefills=2)
    added = between(before, totals_of(rendered(a=a, b=b)))
    step = added["a"].time("decode_step_seconds")
    assert (step.count, step.seconds) == (10, pytest.approx(0.2))
    assert step.mean_ms == pytest.approx(20)
    assert added["a"].counts["decode_bytes_sent"] == 3000
    assert added["b"].time("prefill_compute_seconds").count == 2
    assert added["b"].time("hop_rtt_seconds").mean_ms is None


def test_the_parts_of_a_step_are_the_step() -> None:
    a, b = TelemetryRecorder(), TelemetryRecorder()
    two_devices(a, b, 10)
    assert token_time_of(totals_of(rendered(a=a, b=b))) == {
        "step_ms": 20.0,
        "compute_ms": 10.0,
        "wait_ms": 3.0,
        "wire_ms": 3.0,
        "overhead_ms": 1.0,
        "source_ms": 3.0,
        "tokens_per_round": 4.0,
    }


def test_two_routes_are_averaged_over_their_rounds() -> None:
    recorders = {name: TelemetryRecorder() for name in "abcd"}
    two_devices(recorders["a"], recorders["b"], 10)
    two_devices(recorders["c"], recorders["d"], 30)
    found = token_time_of(totals_of(rendered(**recorders)))
    assert found is not None
    assert (found["step_ms"], found["compute_ms"], found["source_ms"]) == (20.0, 10.0, 3.0)


def test_a_device_alone_has_no_wires() -> None:
    alone = DeviceTotals({"decode_compute_seconds": Total(0.08, 10), "decode_step_seconds": Total(0.1, 10)})
    found = token_time_of({"a": alone})
    assert found is not None
    assert (found["compute_ms"], found["wire_ms"], found["overhead_ms"], found["source_ms"]) == (8.0, 0.0, 0.0, 2.0)


def test_utilization_is_time_computed_over_time() -> None:
    a, b = TelemetryRecorder(), TelemetryRecorder()
    two_devices(a, b, 10, prefills=2)
    first, second = (dict(stage) for stage in stages_of(totals_of(rendered(a=a, b=b, idle=TelemetryRecorder())), 0.2))
    assert first["utilization"] == pytest.approx(0.2)
    assert second["utilization"] == pytest.approx((0.06 + 0.1) / 0.2)
    assert second["prefill_utilization"] == pytest.approx(0.5)
    assert (first["bytes_per_frame"], second["bytes_per_frame"]) == (300.0, None)
    assert (second["decode_runs"], second["prefill_runs"], second["compute_ms"]) == (10, 2, 6.0)


def test_a_worker_that_started_anew_counts_from_its_start() -> None:
    a, b = TelemetryRecorder(), TelemetryRecorder()
    two_devices(a, b, 10)
    before = totals_of(rendered(a=a, b=b))
    anew = TelemetryRecorder()
    two_devices(anew, TelemetryRecorder(), 3)
    added = between(before, totals_of(rendered(a=anew, b=b)))
    assert added["a"].time("decode_step_seconds").count == 3
    assert added["b"].time("decode_compute_seconds").count == 0
    # A device that left is not counted, one that came is.
    assert set(between(before, totals_of(rendered(b=b, c=anew)))) == {"b", "c"}


def test_either_kind_of_total_tells_of_a_new_start() -> None:
    was = DeviceTotals({"decode_step_seconds": Total(5.0, 50)}, {"tokens_sampled": 9.0})
    for now in (
        DeviceTotals({"decode_step_seconds": Total(1.0, 10)}, {"tokens_sampled": 9.0}),
        DeviceTotals({"decode_step_seconds": Total(5.0, 50)}, {"tokens_sampled": 3.0}),
    ):
        assert between({"a": was}, {"a": now}) == {"a": now}


def test_nothing_measured_nothing_said() -> None:
    assert token_time_of({}) is None
    assert token_time_of({"a": DeviceTotals()}) is None
    assert stages_of({"a": DeviceTotals()}, 1.0) == []
    idle: list[Any] = stages_of({"a": DeviceTotals({"decode_compute_seconds": Total(1.0, 1)})}, 0.0)
    assert idle[0]["utilization"] is None


@given(st.text(max_size=200) | st.text('edge_decode_compute_seconds_sum{device="a"} 1.5#TYPE\n\\,', max_size=80))
def test_other_texts_are_no_metrics(text: str) -> None:
    with suppress(ValueError):
        assert totals_of(text) == {}
