"""A Jetson's kernel files of three generations, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.device.sensors.jetson import JetsonSensor, board_description, find_rails, gpu_devfreq, memory_clock_mhz
from agent.device.sensors.sample import POWER
from agent.device.sensors.sysfs import Missing
from tests.fakes.jetson_tree import agx_thor, channel, nano, orin_nano, put, put_all


def test_an_orin_nano(tmp_path: Path) -> None:
    found = JetsonSensor(orin_nano(tmp_path)).sample(5.0)
    assert found.rails_mw == (("VDD_IN", 6000.0), ("VDD_CPU_GPU_CV", 520.0), ("VDD_SOC", 1480.0))
    assert (found.power_w, found.covers, found.source, found.taken_s) == (6.0, "module", "sysfs", 5.0)
    assert (found.gpu_load, found.gpu_clock_mhz, found.cpu_clock_mhz) == (0.634, 612.0, 1497.6)
    assert found.temperatures_c == {"cpu": 53.968, "gpu": 53.343, "tj": 54.218}
    assert found.memory_clock_mhz is None
    assert found.missing == {
        "memory_clock_mhz": "the memory clock is in debugfs, which only root may read",
        "temperatures_c.cv0": "the sensor is offline",
    }


def test_a_nano_of_release_32(tmp_path: Path) -> None:
    found = JetsonSensor(nano(tmp_path)).sample(0.0)
    assert found.rails_mw == (("POM_5V_IN", 1750.0), ("POM_5V_GPU", 0.0), ("POM_5V_CPU", 366.0))
    assert (found.power_w, found.gpu_load, found.hottest_c) == (1.75, 0.0, 45.0)


def test_a_thor_counts_its_input_once_and_has_a_negative_rail(tmp_path: Path) -> None:
    found = JetsonSensor(agx_thor(tmp_path)).sample(0.0)
    assert dict(found.rails_mw) == {
        "VIN": 19780.0,
        "VDD_GPU": -396.0,
        "VDD_CPU_SOC_MSS": 5500.0,
        "VIN_SYS_5V0": 5000.0,
    }
    assert found.power_w == pytest.approx(19.78)
    assert found.gpu_clock_mhz == 315.0
    assert found.missing["gpu_load"] == "the kernel gives no GPU load on this board; NVML may"
    assert "switched off" in found.missing["temperatures_c.gpu"]


def test_a_thor_whose_input_is_not_monitored(tmp_path: Path) -> None:
    root = agx_thor(tmp_path)
    for path in sorted((root / "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon5").iterdir()):
        path.unlink()
    assert JetsonSensor(root).sample(0.0).power_w == pytest.approx(10.104)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"label": "BOARD_IN", "name": "ina226", "in1_input": 1000, "curr1_input": 5}, ["BOARD_IN"]),
        ({"name": "ina226", "in1_input": 1000, "curr1_input": 5}, ["ina226"]),
        ({"in1_input": 1000, "curr1_input": 5}, ["7-0045"]),
        ({"name": "ina226", "curr1_input": 5}, []),
    ],
)
def test_a_monitor_of_one_rail_is_named_by_what_there_is(
    tmp_path: Path, files: dict[str, object], names: list[str]
) -> None:
    put_all(tmp_path, {f"sys/bus/i2c/drivers/ina2xx/7-0045/hwmon/hwmon0/{name}": text for name, text in files.items()})
    rails = find_rails(tmp_path, "agx-orin")
    assert [rail.name for rail in rails] == names
    assert [rail.read_mw() for rail in rails] == [5.0] * len(names)


def test_unconnected_channels_are_left_out(tmp_path: Path) -> None:
    monitor = "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4"
    put_all(tmp_path, {**channel(monitor, 1, "NC", 0, 0), **channel(monitor, 2, "VIN_SYS_5V0", 5000, 800)})
    assert [rail.name for rail in find_rails(tmp_path, "agx-orin")] == ["VIN_SYS_5V0"]


def test_an_unreadable_rail_is_no_zero_and_takes_the_total_with_it(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    (root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input").unlink()
    found = JetsonSensor(root).sample(0.0)
    assert found.power_w is None
    assert found.missing[POWER] == "the total of orin-nano is VDD_IN, but the rails are VDD_CPU_GPU_CV, VDD_SOC"
    assert "there is no" in found.missing["rails_mw.VDD_IN"]


def test_a_board_that_is_in_no_table_has_rails_and_no_total(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    put(root, "proc/device-tree/model", "Unheard-of Board")
    put(root, "proc/device-tree/compatible", "acme,board")
    found = JetsonSensor(root).sample(0.0)
    assert (len(found.rails_mw), found.power_w) == (3, None)
    assert "Unheard-of Board acme,board is in no table" in found.missing[POWER]
    assert JetsonSensor(root, board="orin nano").sample(0.0).power_w == 6.0


def test_over_current_events_are_counted_from_the_start_of_the_sensor(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    sensor = JetsonSensor(root)
    assert sensor.sample(0.0).over_current_events == {"oc1": 0, "oc3": 0}
    put(root, "sys/class/hwmon/hwmon2/oc3_event_cnt", 27395)
    assert sensor.sample(0.1).over_current_events["oc3"] == 0  # slow values are read twice a second
    assert sensor.sample(0.6).over_current_events == {"oc1": 0, "oc3": 5}
    put(root, "sys/class/hwmon/hwmon2/oc3_event_cnt", 2)  # started again
    assert sensor.sample(1.2).over_current_events["oc3"] == 2


def test_rails_are_read_each_time(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    sensor = JetsonSensor(root)
    assert sensor.sample(0.0).power_w == 6.0
    put(root, "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input", 2400)
    assert sensor.sample(0.05).power_w == 12.0


def test_the_memory_clock_for_root(tmp_path: Path) -> None:
    put(tmp_path, "sys/kernel/debug/bpmp/debug/clk/emc/rate", 3199000000)
    assert memory_clock_mhz(tmp_path) == 3199.0
    with pytest.raises(Missing, match="only root"):
        memory_clock_mhz(tmp_path / "none")


@pytest.mark.parametrize(
    ("build", "name"), [(orin_nano, "17000000.gpu"), (nano, "57000000.gpu"), (agx_thor, "gpu-gpc-0")]
)
def test_the_gpu_among_other_clocks(tmp_path: Path, build: Callable[[Path], Path], name: str) -> None:
    gpu = gpu_devfreq(build(tmp_path))
    assert gpu is not None
    assert gpu.name == name


def test_a_machine_that_is_no_jetson(tmp_path: Path) -> None:
    sensor = JetsonSensor(tmp_path)
    assert not sensor.is_there
    found = sensor.sample(0.0)
    assert (found.power_w, found.gpu_load, found.temperatures_c) == (None, None, {})
    assert found.missing[POWER] == "the kernel shows no power monitor (ina3221)"
    sensor.close()


def test_the_owners_name_of_the_board_wins(tmp_path: Path) -> None:
    root = nano(tmp_path)
    assert board_description(root) == (
        "NVIDIA Jetson Nano Developer Kit nvidia,p3449-0000-b00+p3448-0000-b00 nvidia,tegra210"
    )
    assert board_description(root, "agx-orin") == "agx-orin"
    assert board_description(root / "none") == ""
