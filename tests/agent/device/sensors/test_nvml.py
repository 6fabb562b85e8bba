"""NVML: what a board answers is a value, what it refuses is a reason and never 0."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from agent.device.sensors.nvml import NvmlSensor
from agent.device.sensors.sample import POWER


class NVMLError(Exception):
    pass


class Library:
    """pynvml as far as the sensor asks it; a name in `refused` is not supported by the board."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_GRAPHICS = 0
    NVML_CLOCK_MEM = 2

    def __init__(self, refused: tuple[str, ...] = (), devices: int = 1) -> None:
        self.refused = refused
        self.devices = devices
        self.energy_mj = 1000
        self.is_open = False

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.refused:
            raise NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False
        self._answer("shutdown", None)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= self.devices:
            raise NVMLError("Not Found")
        return "gpu"

    def nvmlDeviceGetTemperature(self, _gpu: str, _kind: int) -> int:
        return int(self._answer("temperature", 41))

    def nvmlDeviceGetPowerUsage(self, _gpu: str) -> int:
        return int(self._answer("power", 287_500))

    def nvmlDeviceGetTotalEnergyConsumption(self, _gpu: str) -> int:
        return int(self._answer("energy", self.energy_mj))

    def nvmlDeviceGetUtilizationRates(self, _gpu: str) -> Any:
        return self._answer("load", SimpleNamespace(gpu=37, memory=20))

    def nvmlDeviceGetClockInfo(self, _gpu: str, kind: int) -> int:
        return int(self._answer("clock", {0: 1755, 2: 9751}[kind]))


ALL = ("temperature", "power", "energy", "load", "clock")


def test_a_discrete_gpu() -> None:
    library = Library()
    sensor = NvmlSensor(library)
    found = sensor.sample(3.0)
    assert (found.power_w, found.energy_j, found.gpu_load, found.covers) == (287.5, 1.0, 0.37, "GPU")
    assert (found.gpu_clock_mhz, found.memory_clock_mhz, found.temperatures_c) == (1755.0, 9751.0, {"gpu": 41.0})
    assert found.missing.keys() == {"cpu_clock_mhz"}
    sensor.close()
    sensor.close()
    assert not library.is_open
    assert sensor.sample(4.0).missing[POWER] == "the sensor is closed"


def test_an_orin_refuses_everything_and_nothing_is_zero() -> None:
    found = NvmlSensor(Library(refused=ALL)).sample(0.0)
    assert (found.power_w, found.energy_j, found.gpu_load, found.gpu_clock_mhz) == (None, None, None, None)
    assert found.temperatures_c == {}
    assert found.missing[POWER] == found.missing["gpu_load"] == "NVML: Not Supported"


@pytest.mark.parametrize("refused", ALL)
def test_one_refusal_takes_nothing_else_along(refused: str) -> None:
    found = NvmlSensor(Library(refused=(refused,))).sample(0.0)
    refused_fields = {name for name, reason in found.missing.items() if reason == "NVML: Not Supported"}
    assert len(refused_fields) == (2 if refused == "clock" else 1)


@pytest.mark.parametrize(("library", "reason"), [(Library(devices=0), "Not Found"), (Library(("init",)), "Supported")])
def test_no_driver_or_no_gpu_is_a_reason(library: Library, reason: str) -> None:
    sensor = NvmlSensor(library)
    assert not sensor.is_there
    assert reason in sensor.sample(0.0).missing[POWER]
    sensor.close()


def test_an_old_binding_without_a_call_is_a_reason() -> None:
    library = Library()
    names = [name for name in dir(library) if "TotalEnergy" not in name]
    found = NvmlSensor(SimpleNamespace(**{name: getattr(library, name) for name in names}))
    assert "too old" in found.sample(0.0).missing["energy_j"]
    assert found.sample(0.0).power_w == 287.5


def test_a_failing_shutdown_does_not_raise() -> None:
    NvmlSensor(Library(refused=("shutdown",))).close()


def test_without_the_package_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    sensor = NvmlSensor()
    assert not sensor.is_there
    assert "pip install edgectl[nvml]" in sensor.sample(0.0).missing[POWER]
