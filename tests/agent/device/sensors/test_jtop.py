"""jtop: the values of its dictionaries, its own total unused, and every way it fails as a reason."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from agent.device.sensors.jtop import JtopSensor
from agent.device.sensors.sample import POWER


class Client:
    """jtop.jtop with the dictionaries of an AGX Thor, whose total counts the input and what it feeds."""

    fails_at = ""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.is_open = False
        self.power: Any = {
            "rail": {
                "VDD_GPU": {"volt": 11000, "curr": 3412, "power": 37528, "avg": 37528},
                "VDD_CPU_SOC_MSS": {"power": 18961},
                "VIN_SYS_5V0": {"power": 18331},
                "VIN": {"power": 87426, "avg": 43713},
                "odd": {},
            },
            "tot": {"power": 162246},
        }
        self.gpu: Any = {"gpu-gpc-0": {"status": {"load": 63.4}, "freq": {"cur": 1575000, "min": 0, "max": 1575000}}}
        self.memory: Any = {"RAM": {"used": 1}, "EMC": {"cur": 4266000}}
        self.cpu: Any = {
            "total": {},
            "cpu": [
                {"online": True, "freq": {"cur": 972000}},
                {"online": True, "freq": {"cur": 2601000}},
                {"online": False},
            ],
        }
        self.temperature: Any = {"CPU": {"temp": 60.4, "online": True}, "GPU": {"temp": -256, "online": False}}

    def _may_fail(self, at: str) -> None:
        if self.fails_at == at:
            raise RuntimeError(f"{at} went wrong")

    def start(self) -> None:
        self._may_fail("start")
        self.is_open = True

    def ok(self, spin: bool = False) -> bool:
        self._may_fail("ok")
        assert spin  # else it waits for the next values
        return self.is_open

    def close(self) -> None:
        self.is_open = False
        self._may_fail("close")


class Broken(Client):
    pass


def test_values_and_our_own_total() -> None:
    sensor = JtopSensor("thor", Client)
    assert sensor.is_there
    found = sensor.sample(2.0)
    assert (found.power_w, found.gpu_load, found.source) == (pytest.approx(87.426), 0.634, "jtop")
    assert (found.gpu_clock_mhz, found.cpu_clock_mhz, found.memory_clock_mhz) == (1575.0, 2601.0, 4266.0)
    assert found.temperatures_c == {"cpu": 60.4}
    assert found.missing == {}
    sensor.close()
    assert sensor.sample(3.0).missing[POWER] == "the sensor is closed"


def test_what_it_does_not_tell_is_missing() -> None:
    class Mute(Client):
        def __init__(self, interval: float) -> None:
            super().__init__(interval)
            self.gpu = self.power = self.memory = {}
            self.cpu = {"cpu": []}

    found = JtopSensor("thor", Mute).sample(0.0)
    assert found.missing == {
        POWER: "no power rail is readable",
        **dict.fromkeys(("gpu_load", "gpu_clock_mhz", "memory_clock_mhz", "cpu_clock_mhz"), "jtop does not tell"),
    }


@pytest.mark.parametrize("place", ["start", "ok", "close"])
def test_its_failures_are_reasons(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(Broken, "fails_at", place)
    sensor = JtopSensor("thor", Broken)
    if place == "close":
        sensor.close()
    assert f"{place} went wrong" in sensor.sample(0.0).missing[POWER]
    sensor.close()


def test_strange_values_are_reasons() -> None:
    class Strange(Client):
        def __init__(self, interval: float) -> None:
            super().__init__(interval)
            self.temperature = {"CPU": {"temp": None}}

    assert "jtop: TypeError" in JtopSensor("thor", Strange).sample(0.0).missing[POWER]


def test_a_connection_that_ended_is_a_reason() -> None:
    class Ended(Client):
        def ok(self, spin: bool = False) -> bool:
            return False

    assert JtopSensor("thor", Ended).sample(0.0).missing[POWER] == "the connection to jtop.service ended"


def test_without_the_package_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    sensor = JtopSensor("thor")
    assert not sensor.is_there
    assert "pip install edgectl[jtop]" in sensor.sample(0.0).missing[POWER]
    sensor.close()
