"""Which sensors a machine gets: order, what is filled from where, and all reasons together when nothing knows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from agent.device.power import PowerRecorder
from agent.device.sensors.discovery import find_sensor, merge
from agent.device.sensors.sample import POWER, Sample
from tests.fakes.jetson_tree import agx_thor, nano, orin_nano, put, put_all
from tests.fakes.tegrastats import install, recorded_lines

LINES = recorded_lines()


@pytest.fixture(autouse=True)
def no_nvml_and_no_tegrastats_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_the_kernels_files_come_first_and_tegrastats_is_not_started(tmp_path: Path) -> None:
    root = orin_nano(tmp_path / "root")
    started = tmp_path / "started"
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\n: > {started}\n")
    program.chmod(0o755)
    sensor = find_sensor(root, tegrastats=str(program))
    found = sensor.sample(1.0)
    assert (found.source, found.power_w, found.gpu_load) == ("sysfs", 6.0, 0.634)
    sensor.close()
    assert not started.exists()


def test_without_a_monitor_tegrastats_gives_the_power_and_the_kernel_the_rest(tmp_path: Path) -> None:
    root = orin_nano(tmp_path / "root")
    for path in sorted((root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1").iterdir()):
        path.unlink()
    program = install(tmp_path / "usr", [LINES[15]])
    sensor = find_sensor(root, tegrastats=str(program))
    try:
        found = sensor.sample(time.monotonic())
    finally:
        sensor.close()
    assert (found.source, found.power_w, found.period_s) == ("tegrastats", pytest.approx(16.321), 0.1)
    assert (found.gpu_load, found.memory_clock_mhz) == (0.634, 2133.0)
    assert POWER not in found.missing


@pytest.mark.parametrize("place", ["bin", "root/usr/bin"])
def test_tegrastats_is_looked_for_on_path_then_in_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    install(tmp_path / place, [LINES[10]])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    sensor = find_sensor(tmp_path / "root", board="NVIDIA Jetson AGX Orin Developer Kit")
    try:
        with PowerRecorder(sensor, period_s=0.02) as recorder:
            while recorder.energy(0.0, time.monotonic()).samples < 2:
                pass
            assert recorder.energy(0.0, time.monotonic()).mean_w == pytest.approx(6.831)
    finally:
        sensor.close()


def test_a_machine_that_tells_nothing_lists_every_reason(tmp_path: Path) -> None:
    sensor = find_sensor(tmp_path, jtop=True)
    found = sensor.sample(4.0)
    assert (found.power_w, found.energy_j, found.taken_s) == (None, None, 4.0)
    for part in (
        "sysfs: the kernel shows",
        "tegrastats: there is no",
        "jtop: the package",
        "nvml: the package",
        "RAPL",
    ):
        assert part in found.missing[POWER], part
    assert "jtop" not in find_sensor(tmp_path).sample(4.0).missing[POWER]
    sensor.close()


def test_an_unknown_board_says_so(tmp_path: Path) -> None:
    root = nano(tmp_path)
    put_all(root, {"proc/device-tree/model": "Acme", "proc/device-tree/compatible": "acme,one"})
    found = find_sensor(root).sample(0.0)
    assert len(found.rails_mw) == 3
    assert "sysfs: Acme acme,one is in no table of total rails; set board in agent.toml" in found.missing[POWER]
    assert find_sensor(root, board="jetson nano").sample(0.0).power_w == 1.75


def test_a_pc_has_its_counter(tmp_path: Path) -> None:
    for name, text in (("name", "package-0"), ("max_energy_range_uj", 10**12), ("energy_uj", 0)):
        put(tmp_path, f"sys/class/powercap/intel-rapl:0/{name}", text)
    sensor = find_sensor(tmp_path)
    assert sensor.sample(1.0).source == "host"
    put(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", 3_000_000)
    assert sensor.sample(2.0).energy_j == 3.0


def test_a_thor_keeps_its_reason_for_the_load(tmp_path: Path) -> None:
    found = find_sensor(agx_thor(tmp_path)).sample(0.0)
    assert found.power_w == pytest.approx(19.78)
    assert found.missing["gpu_load"].startswith("sysfs: the kernel gives no GPU load on this board; NVML may")


def test_the_first_that_knows_wins_field_by_field() -> None:
    first = Sample(taken_s=1.0, source="sysfs", rails_mw=(("A", 1.0),), gpu_load=0.5, missing={POWER: "no", "x": "a"})
    second = Sample(
        taken_s=0.5, source="nvml", power_w=3.0, energy_j=9.0, covers="GPU", gpu_load=0.9, missing={"x": "b"}
    )
    third = Sample(taken_s=1.0, source="host", power_w=7.0, cpu_clock_mhz=3.0, temperatures_c={"cpu": 40.0})
    found = merge([first, second, third])
    assert (found.source, found.power_w, found.energy_j, found.covers, found.taken_s) == ("nvml", 3.0, 9.0, "GPU", 0.5)
    assert (found.gpu_load, found.cpu_clock_mhz, found.temperatures_c) == (0.5, 3.0, {"cpu": 40.0})
    assert found.missing == {"x": "sysfs: a; nvml: b"}
