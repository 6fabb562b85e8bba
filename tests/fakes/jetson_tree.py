"""Trees of the kernel's files as Jetsons of three generations show them, for sensors that take a root."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def put(root: Path, name: str, value: object) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n", encoding="utf-8")
    return path


def put_all(root: Path, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        put(root, name, value)


def zones(*values: tuple[str, object]) -> dict[str, object]:
    """Thermal zones of (type, milli-degrees)."""
    files: dict[str, object] = {}
    for number, (name, milli) in enumerate(values):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = name
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = milli
    return files


def cpus(*clocks_khz: int) -> dict[str, object]:
    files: dict[str, object] = {"sys/devices/system/cpu/online": f"0-{len(clocks_khz) - 1}"}
    for number, clock in enumerate(clocks_khz):
        folder = f"sys/devices/system/cpu/cpu{number}/cpufreq"
        files |= {f"{folder}/scaling_cur_freq": clock, f"{folder}/scaling_governor": "schedutil"}
        files |= {f"{folder}/scaling_min_freq": 729600, f"{folder}/scaling_max_freq": 1510400}
    return files


def channel(monitor: str, number: int, name: str, millivolts: int, milliamperes: int) -> dict[str, object]:
    return {
        f"{monitor}/in{number}_label": name,
        f"{monitor}/in{number}_input": millivolts,
        f"{monitor}/curr{number}_input": milliamperes,
    }


def orin_nano(root: Path) -> Path:
    """JetPack 6.2 on an Orin Nano 8GB in the mode 15W: VDD_IN 5.0 V x 1.2 A, and the trap of in7."""
    monitor = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    soctherm = "sys/class/hwmon/hwmon2"
    gpu = "sys/class/devfreq/17000000.gpu"
    put_all(
        root,
        {
            **channel(monitor, 1, "VDD_IN", 5000, 1200),
            **channel(monitor, 2, "VDD_CPU_GPU_CV", 5000, 104),
            **channel(monitor, 3, "VDD_SOC", 5000, 296),
            f"{monitor}/in7_label": "sum of shunt voltages",
            f"{monitor}/in7_input": 12,
            "sys/class/devfreq/15340000.vic/cur_freq": 115200000,
            f"{gpu}/device/load": 634,
            f"{gpu}/cur_freq": 612000000,
            f"{gpu}/min_freq": 306000000,
            f"{gpu}/max_freq": 624750000,
            f"{gpu}/governor": "nvhost_podgov",
            **cpus(1497600, 729600, 729600, 729600, 1344000, 729600),
            **zones(("cpu-thermal", 53968), ("gpu-thermal", 53343), ("cv0-thermal", -256000), ("tj-thermal", 54218)),
            f"{soctherm}/name": "soctherm_oc",
            f"{soctherm}/oc1_event_cnt": 3,
            f"{soctherm}/oc3_event_cnt": 27390,
            "sys/class/hwmon/hwmon3/name": "pwmfan",
            "sys/class/hwmon/hwmon3/pwm1": 51,
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
            "etc/nvpmodel.conf": "< PM_CONFIG DEFAULT=1 >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
            "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL NAME=MAXN_SUPER ID=2 >\n< POWER_MODEL ID=3 NAME=7W >",
            "var/lib/nvpmodel/status": "pmode:0000",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0003-super\0nvidia,tegra234\0",
            "proc/sys/kernel/osrelease": "5.15.148-tegra",
            "proc/meminfo": "MemTotal: 7802880 kB\nMemAvailable: 5802880 kB",
        },
    )
    return root


def nano(root: Path) -> Path:
    """JetPack 4.6.1 on a Nano: rails under iio, a thermal zone with a fixed value."""
    monitor = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    put_all(
        root,
        {
            f"{monitor}/rail_name_0": "POM_5V_IN",
            f"{monitor}/in_power0_input": 1750,
            f"{monitor}/rail_name_1": "POM_5V_GPU",
            f"{monitor}/in_power1_input": 0,
            f"{monitor}/rail_name_2": "POM_5V_CPU",
            f"{monitor}/in_power2_input": 366,
            "sys/class/devfreq/57000000.gpu/device/load": 0,
            "sys/class/devfreq/57000000.gpu/cur_freq": 76800000,
            **cpus(1224000, 1224000, 1224000, 1224000),
            **zones(("AO-therm", 45000), ("CPU-therm", 40000), ("PMIC-Die", 50000)),
            "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64",
            "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,tegra210\0",
        },
    )
    return root


def agx_thor(root: Path) -> Path:
    """JetPack 7.1 on a Thor: three rails of an INA3221, the input on an INA238, no GPU load, the GPU switched off."""
    monitor = "sys/bus/i2c/drivers/ina3221/2-0040/hwmon/hwmon3"
    at_input = "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon5"
    put_all(
        root,
        {
            **channel(monitor, 1, "VDD_GPU", 11000, -36),
            **channel(monitor, 2, "VDD_CPU_SOC_MSS", 11000, 500),
            **channel(monitor, 3, "VIN_SYS_5V0", 5000, 1000),
            f"{at_input}/name": "ina238",
            f"{at_input}/in1_input": 20000,
            f"{at_input}/curr1_input": 990,
            f"{at_input}/power1_input": 19780000,
            "sys/class/devfreq/gpu-gpc-0/cur_freq": 315000000,
            "sys/class/devfreq/gpu-nvd-0/cur_freq": 1000000000,
            **cpus(972000),
            **zones(("cpu-thermal", 37343), ("tj-thermal", 38875)),
            "sys/class/thermal/thermal_zone2/type": "gpu-thermal",
            "etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 1, BOARD: generic, EABI: aarch64",
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3971-0080+p3834-0008\0nvidia,tegra264\0",
        },
    )
    return root
