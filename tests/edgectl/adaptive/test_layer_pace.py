"""Step times of a device from totals in its heartbeats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.telemetry import TelemetryRecorder
from agent.wire.messages import Telemetry
from edgectl.adaptive.layer_pace import LayerPace


class Device:
    """Takes 1 ms beside its layers and 0.5 ms for each."""

    def __init__(self) -> None:
        self.recorder = TelemetryRecorder()
        self.pace = LayerPace()

    def run(self, layers: int | None, steps: int = 10, *, ms: float | None = None) -> None:
        for _ in range(steps):
            self.recorder.observe("decode_compute_seconds", 1e-3 * (1.0 + 0.5 * (layers or 0) if ms is None else ms))
        self.pace.heard(self.recorder.snapshot(), layers)


def test_before_anything_was_observed_nothing_is_known() -> None:
    pace = LayerPace()
    assert pace.step_ms(4) is None
    pace.heard(Telemetry(), 4)
    assert pace.step_ms(4) is None


def test_the_first_heartbeat_with_steps_counts_where_the_device_ran_the_same_layers_before() -> None:
    device = Device()
    device.run(8, steps=0)
    device.run(8)
    assert device.pace.step_ms(8) == pytest.approx(5.0)
    # A worker that started again counts from nothing.
    device.recorder = TelemetryRecorder()
    device.run(8, ms=99.0, steps=3)
    assert device.pace.step_ms(8) == pytest.approx(5.0)


def test_of_one_number_of_layers_the_time_is_per_layer() -> None:
    device = Device()
    device.run(8)
    assert device.pace.step_ms(8) is None
    device.run(8)
    assert device.pace.step_ms(8) == pytest.approx(5.0)
    assert device.pace.step_ms(16) == pytest.approx(10.0)


def test_of_two_a_line_is_fitted_and_what_is_mixed_does_not_count() -> None:
    device = Device()
    for layers in (8, 8, 16, 16, None, None, 4):
        device.run(layers, ms=100.0 if layers in (None, 4) else None)
    assert [device.pace.step_ms(layers) for layers in (1, 8, 16, 30)] == pytest.approx([1.5, 5.0, 9.0, 16.0])


def test_a_heartbeat_in_which_nothing_ran_changes_nothing() -> None:
    device = Device()
    device.run(8)
    device.run(8)
    device.run(8, steps=0)
    assert device.pace.step_ms(8) == pytest.approx(5.0)


def test_what_changes_is_followed() -> None:
    device = Device()
    device.run(8)
    for _ in range(20):
        device.run(8, ms=12.0)
    assert device.pace.step_ms(8) == pytest.approx(12.0, rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 40) | st.none(), st.floats(1e-3, 1e4)), max_size=12), st.integers(0, 64))
def test_no_time_is_negative_and_more_layers_take_no_less(seen: list[tuple[int | None, float]], layers: int) -> None:
    device = Device()
    for count, ms in seen:
        device.run(count, steps=1, ms=ms)
    fewer, more = device.pace.step_ms(layers), device.pace.step_ms(layers + 1)
    assert (fewer is None) == (more is None)
    if fewer is not None and more is not None:
        assert 0.0 <= fewer <= more
