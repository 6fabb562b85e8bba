"""Energy: the integral against closed forms and a fine sum, gaps, counters; the recorder with a scripted clock."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.power import Energy, PowerRecorder, Reading, integrate
from agent.device.sensors.sample import POWER, Sample

TIMES = st.lists(st.floats(0.01, 0.14), min_size=2, max_size=40).map(
    lambda steps: [sum(steps[: n + 1]) for n in range(len(steps))]
)
POWERS = st.floats(-5.0, 100.0)


def every(period_s: float, powers: list[float], start_s: float = 0.0) -> list[Reading]:
    return [Reading(start_s + period_s * n, power) for n, power in enumerate(powers)]


class ScriptedSensor:
    """Answers with prepared samples, the last one again and again; a reading takes `cost_s` of its clock."""

    def __init__(self, samples: list[Sample], times: list[float] | None = None, cost_s: float = 0.0) -> None:
        self._samples = samples
        self._times: Iterator[float] = iter(times or [])
        self._cost_s = cost_s
        self.now_s = 0.0
        self.taken = 0
        self.seen_twice = threading.Event()

    def clock(self) -> float:
        return self.now_s

    def sample(self, now_s: float) -> Sample:
        self.now_s = next(self._times, self.now_s) + self._cost_s
        found = self._samples[min(self.taken, len(self._samples) - 1)]
        self.taken += 1
        if self.taken >= 2:
            self.seen_twice.set()
        return found

    def close(self) -> None:
        pass


def watts(taken_s: float, power_w: float) -> Sample:
    return Sample(taken_s=taken_s, source="sysfs", power_w=power_w, covers="module")


def test_constant_power() -> None:
    energy = integrate(every(0.05, [7.5] * 41), 0.0, 2.0, 0.05)
    assert energy.joules == pytest.approx(15.0)
    assert (energy.mean_w, energy.samples, energy.gaps, energy.reason) == (pytest.approx(7.5), 41, 0, "")


def test_the_ends_are_interpolated() -> None:
    ramp = every(1.0, [0.0, 10.0, 20.0])  # P = 10 t
    assert integrate(ramp, 0.25, 1.75, 1.0).joules == pytest.approx(5 * (1.75**2 - 0.25**2))
    within_one_pair = integrate(ramp, 0.25, 0.75, 1.0)
    assert within_one_pair.joules == pytest.approx(5 * (0.75**2 - 0.25**2))
    assert within_one_pair.samples == 0


@given(TIMES, st.data())
def test_the_integral_is_that_of_a_fine_sum(times: list[float], data: st.DataObject) -> None:
    readings = [Reading(time_s, data.draw(POWERS)) for time_s in times]
    low, high = sorted((data.draw(st.floats(times[0], times[-1])), data.draw(st.floats(times[0], times[-1]))))
    energy = integrate(readings, low, high, 0.05)
    steps = 4000
    width = (high - low) / steps
    total = 0.0
    for step in range(steps):
        at = low + (step + 0.5) * width
        left = max(n for n in range(len(times)) if times[n] <= at or n == 0)
        right = min(left + 1, len(times) - 1)
        share = (at - times[left]) / (times[right] - times[left]) if right > left else 0.0
        first, second = readings[left].power_w or 0.0, readings[right].power_w or 0.0
        total += (first + share * (second - first)) * width
    assert math.isclose(energy.joules or 0.0, total, rel_tol=1e-3, abs_tol=1e-3)


@given(TIMES, st.data())
def test_adjacent_intervals_add_up(times: list[float], data: st.DataObject) -> None:
    readings = [Reading(time_s, data.draw(POWERS)) for time_s in times]
    middle = data.draw(st.floats(times[0], times[-1]))
    parts = [integrate(readings, times[0], middle, 0.05), integrate(readings, middle, times[-1], 0.05)]
    whole = integrate(readings, times[0], times[-1], 0.05)
    assert whole.joules == pytest.approx(sum(part.joules or 0.0 for part in parts), abs=1e-9)


def test_a_gap_is_left_out_and_counted() -> None:
    readings = [*every(0.1, [10.0] * 11), *every(0.1, [10.0] * 11, start_s=3.0)]
    energy = integrate(readings, 0.0, 4.0, 0.1)
    assert (energy.joules, energy.covered_s) == (pytest.approx(20.0), pytest.approx(2.0))
    assert (energy.mean_w, energy.gaps) == (pytest.approx(10.0), 1)
    assert energy.reason == "2.000 s of 4.000 s are without readings"


@pytest.mark.parametrize(("missed", "gaps"), [(1, 0), (2, 0), (3, 1)])
def test_more_than_three_periods_are_a_gap(missed: int, gaps: int) -> None:
    readings = [Reading(0.0, 4.0), Reading(0.125 * (missed + 1), 4.0)]
    assert integrate(readings, 0.0, 0.125 * (missed + 1), 0.125).gaps == gaps


def test_ends_without_readings_are_gaps_and_not_extrapolated() -> None:
    energy = integrate(every(0.1, [10.0] * 11, start_s=1.0), 0.0, 3.0, 0.1)
    assert (energy.joules, energy.gaps) == (pytest.approx(10.0), 2)


@pytest.mark.parametrize("readings", [[], [Reading(0.5, 3.0)], [Reading(7.0, 3.0), Reading(8.0, 3.0)]])
def test_nothing_covered_is_none_with_a_reason(readings: list[Reading]) -> None:
    energy = integrate(readings, 0.0, 1.0, 0.05)
    assert (energy.joules, energy.mean_w) == (None, None)
    assert energy.reason == "no two readings cover the interval"


def test_a_counter_wins_over_powers_and_bridges_a_gap_inside() -> None:
    readings = [Reading(0.0, 1.0, 100.0), Reading(1.0, 1.0, 130.0), Reading(9.0, 1.0, 370.0), Reading(10.0, 1.0, 400.0)]
    energy = integrate(readings, 0.5, 9.5, 1.0)
    assert (energy.joules, energy.gaps) == (pytest.approx(270.0), 0)


def test_a_counter_is_not_interpolated_over_a_gap() -> None:
    readings = [Reading(0.0, None, 0.0), Reading(1.0, None, 10.0), Reading(11.0, None, 20.0)]
    energy = integrate(readings, 0.0, 5.0, 1.0)
    assert (energy.joules, energy.gaps) == (pytest.approx(10.0), 1)


def test_a_counter_that_was_reset_is_a_gap() -> None:
    readings = [Reading(0.0, None, 900.0), Reading(1.0, None, 910.0), Reading(2.0, None, 5.0), Reading(3.0, None, 15.0)]
    energy = integrate(readings, 0.0, 3.0, 1.0)
    assert (energy.joules, energy.gaps) == (pytest.approx(20.0), 1)


def test_the_recorder_stamps_the_middle_of_the_read() -> None:
    sensor = ScriptedSensor([watts(0.0, 5.0)], times=[], cost_s=0.02)
    recorder = PowerRecorder(sensor, sensor.clock, period_s=0.05)
    recorder.take()
    assert recorder.latest is not None
    assert recorder.latest.taken_s == pytest.approx(0.01)


def test_a_line_that_came_earlier_keeps_its_moment_and_counts_once() -> None:
    lines = [watts(0.9, 5.0), watts(0.9, 5.0), watts(1.9, 7.0), watts(2.9, 7.0)]
    sensor = ScriptedSensor(lines)
    recorder = PowerRecorder(sensor, sensor.clock, period_s=1.0)
    for sensor.now_s in (1.0, 1.5, 2.0, 3.0):
        recorder.take()
    energy = recorder.energy(0.9, 2.9)
    assert (energy.joules, energy.samples) == (pytest.approx(6.0 + 7.0), 3)


def test_a_slow_source_widens_the_gap() -> None:
    slow = [Sample(taken_s=float(n), source="tegrastats", power_w=5.0, period_s=1.0) for n in range(4)]
    sensor = ScriptedSensor(slow)
    recorder = PowerRecorder(sensor, sensor.clock, period_s=0.05)
    for sensor.now_s in (0.5, 1.5, 2.5, 3.5):
        recorder.take()
    assert recorder.energy(0.0, 3.0) == Energy(
        joules=15.0, mean_w=5.0, samples=4, gaps=0, covered_s=3.0, source="tegrastats"
    )


def test_without_power_the_sensors_reason_is_passed_on() -> None:
    sensor = ScriptedSensor([Sample(taken_s=0.0, source="host", missing={POWER: "no rail is readable"})])
    recorder = PowerRecorder(sensor, sensor.clock)
    assert recorder.energy(0.0, 1.0).reason == "the recorder was not started"
    recorder.take()
    energy = recorder.energy(0.0, 1.0)
    assert (energy.joules, energy.reason, energy.source) == (None, "no rail is readable", "host")


def test_the_thread_records_and_ends() -> None:
    sensor = ScriptedSensor([watts(0.0, 8.0)], times=[0.01 * n for n in range(1, 100_000)])
    recorder = PowerRecorder(sensor, sensor.clock, period_s=0.0)
    with recorder:
        recorder.start()
        assert sensor.seen_twice.wait(10.0)
    taken = sensor.taken
    recorder.stop()
    assert sensor.taken == taken
    assert not [thread for thread in threading.enumerate() if thread.name == "power"]
