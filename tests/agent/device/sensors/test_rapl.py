"""Processor energy counters: what is summed, what wraps, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.device.sensors.rapl import RaplCounter
from agent.device.sensors.sysfs import Missing
from tests.fakes.jetson_tree import put, put_all

FOLDER = "sys/class/powercap"


def zone(name: str, kind: str, energy_uj: int, range_uj: int = 1_000_000) -> dict[str, object]:
    folder = f"{FOLDER}/{name}"
    return {f"{folder}/name": kind, f"{folder}/energy_uj": energy_uj, f"{folder}/max_energy_range_uj": range_uj}


def test_packages_and_their_memory_are_summed_and_parts_are_not(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:2": "dram", "intel-rapl:1": "psys"}
    for name, kind in zones.items():
        put_all(tmp_path, zone(name, kind, 0))
    counter = RaplCounter(tmp_path)
    for step, name in enumerate(zones):
        put(tmp_path, f"{FOLDER}/{name}/energy_uj", 10**step)
    assert counter.read_j() == pytest.approx((1 + 100) / 1e6)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    put_all(tmp_path, zone("intel-rapl:0", "package-0", 999_990))
    counter = RaplCounter(tmp_path)
    put(tmp_path, f"{FOLDER}/intel-rapl:0/energy_uj", 40)
    assert counter.read_j() == pytest.approx(50e-6)
    put(tmp_path, f"{FOLDER}/intel-rapl:0/energy_uj", 41)
    assert counter.read_j() == pytest.approx(51e-6)


def test_no_counter_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no energy counter"):
        RaplCounter(tmp_path)
    put(tmp_path, f"{FOLDER}/intel-rapl:0/name", "package-0")
    put(tmp_path, f"{FOLDER}/intel-rapl:0/max_energy_range_uj", 1)
    with pytest.raises(Missing, match="energy_uj"):
        RaplCounter(tmp_path)
