"""Fingerprints of three boards and of machines that hide things."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.fingerprint import (
    fingerprint,
    jetpack_of,
    l4t_release,
    parse_l4t_release,
    parse_power_modes,
    power_mode,
)
from agent.device.sensors.sample import Sample
from agent.device.sensors.sysfs import Missing
from tests.fakes.jetson_tree import agx_thor, nano, orin_nano, put, put_all


def test_an_orin_nano(tmp_path: Path) -> None:
    values, missing = fingerprint(orin_nano(tmp_path))
    assert values == {
        "board": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "module": "orin-nano",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "power_mode": "15W",
        "power_mode_id": 0.0,
        "governor": "schedutil",
        "cores_on": 6.0,
        "cpu_clock_mhz": 1497.6,
        "cpu_min_clock_mhz": 729.6,
        "cpu_max_clock_mhz": 1510.4,
        "gpu_clock_mhz": 612.0,
        "gpu_min_clock_mhz": 306.0,
        "gpu_max_clock_mhz": 624.75,
        "gpu_governor": "nvhost_podgov",
        "memory_clock_mhz": None,
        "memory": "shared by CPU and GPU",
        "memory_total_bytes": 7802880.0 * 1024,
        "gpu": None,
        "gpu_driver": None,
        "fan_share": 0.2,
        "kernel": "5.15.148-tegra",
        "temperature_c": 54.218,
    }
    assert missing.keys() == {"memory_clock_mhz", "gpu", "gpu_driver"}


@pytest.mark.parametrize(
    ("build", "module", "l4t", "jetpack"), [(nano, "nano", "32.7.1", "4.6.1"), (agx_thor, "thor", "38.4.0", "7.1")]
)
def test_other_generations(tmp_path: Path, build: object, module: str, l4t: str, jetpack: str) -> None:
    assert callable(build)
    values, missing = fingerprint(build(tmp_path))
    assert (values["module"], values["l4t"], values["jetpack"]) == (module, l4t, jetpack)
    assert values["power_mode"] is None
    assert missing["power_mode"] == "nvpmodel has left no /var/lib/nvpmodel/status"


def test_every_none_has_a_reason_and_nothing_else_has(tmp_path: Path) -> None:
    for root in (orin_nano(tmp_path / "a"), nano(tmp_path / "b"), agx_thor(tmp_path / "c"), tmp_path / "d", Path("/")):
        values, missing = fingerprint(root)
        assert {name for name, value in values.items() if value is None} == missing.keys()
        assert all(missing.values())


def test_the_owners_board_and_a_sensors_knowledge_fill_in(tmp_path: Path) -> None:
    sample = Sample(
        taken_s=0.0, source="tegrastats", memory_clock_mhz=2133.0, gpu_clock_mhz=612.0, temperatures_c={"tj": 61.5}
    )
    values, missing = fingerprint(tmp_path, board="agx-orin-32gb", sample=sample)
    assert (values["board"], values["module"], values["memory"]) == (
        "agx-orin-32gb",
        "agx-orin",
        "shared by CPU and GPU",
    )
    assert (values["memory_clock_mhz"], values["gpu_clock_mhz"], values["temperature_c"]) == (2133.0, 612.0, 61.5)
    assert "gpu_clock_mhz" not in missing


def test_a_pc_with_a_discrete_gpu(tmp_path: Path) -> None:
    put(tmp_path, "proc/driver/nvidia/gpus/0000:0a:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3090\nIRQ: 12")
    put(tmp_path, "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5")
    values, _ = fingerprint(tmp_path)
    assert (values["gpu"], values["gpu_driver"]) == ("NVIDIA GeForce RTX 3090", "550.54.15")
    assert (values["memory"], values["l4t"]) == ("separate for CPU and GPU", None)


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [("36.4.3", "6.2"), ("36.4.7", "6.2.1"), ("38.4.0", "7.1"), ("39.2.0", "7.2"), ("36.4", "6.1"), ("36.4.0", "6.1"),
     ("35.4.1", "5.1.2"), ("32.7.1", "4.6.1"), ("36.9.9", None), ("", None)],
)  # fmt: skip
def test_jetpack_by_release(l4t: str, jetpack: str | None) -> None:
    assert jetpack_of(l4t) == jetpack


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004", "32.7.1"),
        ("# R39 (release), REVISION: 2.0", "39.2.0"),
        ("# KERNEL_VARIANT: oot", None),
        ("", None),
    ],
)
def test_releases(text: str, release: str | None) -> None:
    assert parse_l4t_release(text) == release


def test_an_unknown_release_has_no_jetpack_and_says_so(tmp_path: Path) -> None:
    put(tmp_path, "etc/nv_tegra_release", "# R41 (release), REVISION: 1.0")
    values, missing = fingerprint(tmp_path)
    assert (values["l4t"], values["jetpack"]) == ("41.1.0", None)
    assert missing["jetpack"] == "no JetPack is known for Jetson Linux 41.1.0"
    put(tmp_path, "etc/nv_tegra_release", "nothing")
    with pytest.raises(Missing, match="names no release"):
        l4t_release(tmp_path)


@pytest.mark.parametrize(("status", "name"), [("pmode:0002", "MAXN_SUPER"), ("pmode:0003 fmode:fanNull", "7W")])
def test_modes_are_resolved_by_name(tmp_path: Path, status: str, name: str) -> None:
    root = orin_nano(tmp_path)
    put(root, "var/lib/nvpmodel/status", status)
    assert power_mode(root)[0] == name


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"var/lib/nvpmodel/status": "pmode:0009"}, "names no mode 9"),
        ({"var/lib/nvpmodel/status": "broken"}, "holds 'broken', no mode"),
        ({"etc/nvpmodel.conf": ""}, "names no mode 0"),
    ],
)
def test_a_mode_that_cannot_be_told(tmp_path: Path, files: dict[str, object], reason: str) -> None:
    root = orin_nano(tmp_path)
    put_all(root, files)
    with pytest.raises(Missing, match=reason):
        power_mode(root)


@given(st.text(max_size=120))
def test_any_configuration_parses(text: str) -> None:
    parse_power_modes(text + "\n< POWER_MODEL ID=1 NAME=25W >")
    parse_l4t_release(text)


@pytest.mark.parametrize(("online", "cores"), [("0-3,6", 5.0), ("0", 1.0), ("0-11", 12.0), ("", None), ("a-b", None)])
def test_cores_that_are_on(tmp_path: Path, online: str, cores: float | None) -> None:
    put(tmp_path, "sys/devices/system/cpu/online", online)
    assert fingerprint(tmp_path)[0]["cores_on"] == cores
