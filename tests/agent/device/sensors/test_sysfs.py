"""Kernel files: numbers, and the reasons where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.device.sensors.sysfs import Missing, cpu_clock_mhz, matching, read_number, read_text, temperatures_c
from tests.fakes.jetson_tree import cpus, put, put_all, zones


def test_text_without_its_nuls(tmp_path: Path) -> None:
    path = tmp_path / "compatible"
    path.write_bytes(b"nvidia,p3767-0003\0nvidia,tegra234\0")
    assert read_text(path) == "nvidia,p3767-0003 nvidia,tegra234"


@pytest.mark.parametrize(("text", "reason"), [("", "holds '', no number"), ("n/a", "holds 'n/a'"), ("1.5.2", "1.5.2")])
def test_no_number_is_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        read_number(put(tmp_path, "load", text))


def test_unreadable_files_are_reasons(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"there is no .*/gone"):
        read_number(tmp_path / "gone")
    with pytest.raises(Missing, match="cannot be read: Is a directory"):
        read_number(tmp_path)
    closed = put(tmp_path, "energy_uj", 5)
    closed.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(Missing, match="energy_uj may be read by root only"):
            read_number(closed)


def test_the_clock_of_the_fastest_core_that_is_on(tmp_path: Path) -> None:
    put_all(tmp_path, cpus(729600, 1497600, 729600))
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").unlink()
    assert cpu_clock_mhz(tmp_path) == pytest.approx(1497.6)
    assert cpu_clock_mhz(tmp_path, "scaling_max_freq") == pytest.approx(1510.4)
    with pytest.raises(Missing, match="no cpufreq"):
        cpu_clock_mhz(tmp_path / "none")


def test_temperatures_and_what_is_offline(tmp_path: Path) -> None:
    put_all(tmp_path, zones(("CPU-therm", 45500), ("cv0-thermal", -256000), ("gpu-thermal", ""), ("tj-thermal", -5000)))
    values, reasons = temperatures_c(tmp_path)
    assert values == {"cpu": 45.5, "tj": -5.0}
    assert reasons == {
        "temperatures_c.cv0": "the sensor is offline",
        "temperatures_c.gpu": "temp holds '', no number; its unit may be switched off",
    }


def test_without_zones_there_is_one_reason(tmp_path: Path) -> None:
    assert temperatures_c(tmp_path) == ({}, {"temperatures_c": "no thermal zone is readable"})
    assert matching(tmp_path / "nothing", "*") == []
