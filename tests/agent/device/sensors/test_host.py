"""Host facts from a made-up file system, and from this machine against psutil."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.sensors.host import (
    HostSensor,
    board_model,
    boot_id,
    has_nvidia_device,
    memory_available_bytes,
    memory_total_bytes,
    model_memory_bytes,
    parse_meminfo,
    physical_cores,
)

ORIN_NANO = """\
MemTotal:        7802880 kB
MemFree:          120000 kB
MemAvailable:    5802880 kB
SwapFree:        3900000 kB
HugePages_Total:       0
"""


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_memory_is_what_is_available_not_what_is_free(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", ORIN_NANO)
    assert memory_available_bytes(tmp_path) == 5802880 * 1024
    assert memory_total_bytes(tmp_path) == 7802880 * 1024


def test_the_reserve_is_a_gibibyte_on_a_small_board(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", ORIN_NANO)
    assert model_memory_bytes(0, tmp_path) == 5802880 * 1024 - (1 << 30)


def test_the_reserve_is_a_share_of_a_big_machine(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal: 125000000 kB\nMemAvailable: 100000000 kB\n")
    assert model_memory_bytes(0, tmp_path) == 100_000_000 * 1024 - int(0.08 * 125_000_000 * 1024)


def test_the_owners_limit_wins_but_is_not_made_up(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", ORIN_NANO)
    assert model_memory_bytes(5 << 30, tmp_path) == 5 << 30
    assert model_memory_bytes(64 << 30, tmp_path) == 5802880 * 1024


def test_a_full_machine_has_nothing_rather_than_less(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 500000 kB\n")
    assert model_memory_bytes(0, tmp_path) == 0


@given(st.text(max_size=80))
def test_any_meminfo_parses(text: str) -> None:
    assert all(value >= 0 for value in parse_meminfo(text).values())


def test_hardware_threads_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings + "\n")
    assert physical_cores(tmp_path, usable=range(4)) == 2
    assert physical_cores(tmp_path, usable=[1]) == 1


def test_without_topology_every_processor_counts(tmp_path: Path) -> None:
    assert physical_cores(tmp_path, usable=range(6)) == 6


def test_the_board_names_itself(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    assert board_model(tmp_path) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert board_model(tmp_path / "none") == os.uname().machine


def test_a_gpu_shows_by_its_device_node(tmp_path: Path) -> None:
    assert not has_nvidia_device(tmp_path)
    put(tmp_path, "dev/nvhost-gpu", "")
    assert has_nvidia_device(tmp_path)


def test_boot_id_is_that_of_the_kernel(tmp_path: Path) -> None:
    put(tmp_path, "proc/sys/kernel/random/boot_id", "9082d2ef-4ecc-45e2-b038-19dded3bebcf\n")
    assert boot_id(tmp_path) == "9082d2ef-4ecc-45e2-b038-19dded3bebcf"


def test_without_linux_files_psutil_answers(tmp_path: Path) -> None:
    assert boot_id(tmp_path) == boot_id(tmp_path)
    assert memory_total_bytes(tmp_path) == psutil.virtual_memory().total


@pytest.mark.skipif(sys.platform != "linux", reason="compares Linux files with psutil")
def test_this_machine_agrees_with_psutil() -> None:
    assert memory_total_bytes() == psutil.virtual_memory().total
    assert memory_available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil is the source")
def test_linux_does_not_load_psutil() -> None:
    code = (
        "import sys; from agent.device.sensors import host as h;"
        "h.model_memory_bytes(), h.physical_cores(), h.boot_id(), h.board_model(); assert 'psutil' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def rapl(root: Path, energy_uj: int) -> None:
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "262143328850"), ("energy_uj", str(energy_uj))):
        put(root, f"sys/class/powercap/intel-rapl:0/{name}", text)


def test_a_pc_with_an_energy_counter(tmp_path: Path) -> None:
    rapl(tmp_path, 1_000_000)
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3400000\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48000\n")
    sensor = HostSensor(tmp_path)
    first = sensor.sample(10.0)
    assert (first.energy_j, first.power_w, first.covers) == (0.0, None, "processor")
    assert "second reading" in first.missing["power_w"]
    rapl(tmp_path, 13_000_000)
    second = sensor.sample(10.5)
    assert (second.energy_j, second.power_w, second.taken_s) == (12.0, 24.0, 10.5)
    assert (second.cpu_clock_mhz, second.temperatures_c) == (3400.0, {"x86_pkg_temp": 48.0})
    assert second.missing.keys() == {"gpu_load", "gpu_clock_mhz", "memory_clock_mhz"}
    sensor.close()


def test_a_pc_that_tells_nothing_has_reasons(tmp_path: Path) -> None:
    found = HostSensor(tmp_path).sample(0.0)
    assert (found.power_w, found.energy_j, found.cpu_clock_mhz, found.temperatures_c) == (None, None, None, {})
    assert "RAPL" in found.missing["power_w"]
    assert found.missing.keys() >= {"cpu_clock_mhz", "temperatures_c", "gpu_load"}


def test_a_counter_that_goes_away_is_a_reason(tmp_path: Path) -> None:
    rapl(tmp_path, 5)
    sensor = HostSensor(tmp_path)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    found = sensor.sample(1.0)
    assert (found.energy_j, found.power_w) == (None, None)
    assert "energy_uj" in found.missing["power_w"]


def test_this_machine_answers_without_raising() -> None:
    found = HostSensor().sample(1.0)
    assert (found.cpu_clock_mhz is None) == ("cpu_clock_mhz" in found.missing)
    assert (found.temperatures_c == {}) == ("temperatures_c" in found.missing)
