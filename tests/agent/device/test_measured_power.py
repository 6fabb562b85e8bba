"""Power by phase from a recorder's readings."""

from __future__ import annotations

import pytest

from agent.device.measured_power import REST_S, PowerWindows
from agent.device.power import Energy, Reading, integrate
from planner.profile import PowerProfile


class Recorded:
    """Readings every 50 ms of a power that is a function of time."""

    def __init__(self, power_w: list[tuple[float, float, float]]) -> None:
        self._readings = [
            Reading(n * 0.05, watts)
            for n in range(400)
            for start_s, stop_s, watts in power_w
            if start_s <= n * 0.05 < stop_s
        ]

    def energy(self, from_s: float, to_s: float) -> Energy:
        return integrate(self._readings, from_s, to_s, 0.05)


def windows(recorder: Recorded) -> PowerWindows:
    now_s = 1.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    made = PowerWindows(recorder, clock=lambda: now_s, sleep=sleep)
    made.rest()
    return made


def test_each_phase_has_its_mean_power() -> None:
    power = windows(Recorded([(0.0, 3.0, 5.0), (3.0, 6.0, 20.0), (6.0, 12.0, 30.0)]))
    power.decoding += [(3.5, 4.0), (4.5, 5.5)]
    power.prefilling.append((7.0, 9.0))
    found = power.profile(layer_ms=4.0)
    assert isinstance(found, PowerProfile)
    assert (found.idle_w, found.decode_w, found.prefill_w) == pytest.approx((5.0, 20.0, 30.0))
    assert found.joules_per_token_layer == pytest.approx(20.0 * 0.004)
    assert power.resting == [(1.0, 1.0 + REST_S)]


def test_a_phase_without_readings_is_a_reason_and_no_number() -> None:
    power = windows(Recorded([(0.0, 3.0, 5.0)]))
    power.decoding.append((4.0, 5.0))
    power.prefilling.append((1.0, 2.0))
    found = power.profile(layer_ms=4.0)
    assert isinstance(found, str)
    assert found.startswith("decode: ")
