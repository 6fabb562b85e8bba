"""tegrastats as a sensor: what its lines are worth on each board, and a real process that may misbehave."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.device.power import PowerRecorder
from agent.device.sensors.sample import POWER, Sample
from agent.device.sensors.tegrastats import LONGEST_LINE_BYTES, TegrastatsSensor, sample_of
from agent.device.sensors.tegrastats_line import parse_line
from tests.fakes.tegrastats import install, recorded_lines

DATA = Path(__file__).parents[3] / "data"
LINES = {f"S{number:02}": line for number, line in enumerate(recorded_lines(), start=1)}
EXPECTED: dict[str, dict[str, Any]] = msgspec.toml.decode((DATA / "tegrastats_expected.toml").read_text("utf-8"))


def sample(name: str, board: str = "") -> Sample:
    return sample_of(parse_line(LINES[name]), board, taken_s=1.0)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("name", EXPECTED)
def test_power_and_heat_by_board(name: str) -> None:
    expected = EXPECTED[name]
    found = sample(name, expected["board"])
    if "power_w" in expected:
        assert found.power_w == pytest.approx(expected["power_w"])
        assert POWER not in found.missing
    else:
        assert found.power_w is None
        assert expected["no_power"] in found.missing[POWER]
    assert found.rails_mw == tuple((rail[0], rail[1]) for rail in expected["rails"])
    assert found.hottest_c == expected["hottest"]
    assert found.cpu_clock_mhz == max(core[1] for core in expected["cores"] if core)


@pytest.mark.parametrize("name", LINES)
def test_every_value_is_there_or_has_a_reason(name: str) -> None:
    found = sample(name)
    for field in ("power_w", "gpu_load", "gpu_clock_mhz", "cpu_clock_mhz", "memory_clock_mhz"):
        assert (getattr(found, field) is None) == (field in found.missing), field


def test_without_root_clocks_are_missing_and_not_zero() -> None:
    found = sample("S19")
    assert (found.gpu_load, found.gpu_clock_mhz, found.memory_clock_mhz) == (0.0, None, None)
    assert "to root only" in found.missing["gpu_clock_mhz"]


def test_a_gpu_that_is_off_has_no_clock() -> None:
    assert sample("S11").gpu_clock_mhz is None
    assert sample("S11").missing["gpu_clock_mhz"] == "GR3D is switched off"
    assert sample("S11").missing["temperatures_c.gpu"] == "the sensor is offline"


def test_a_thor_has_clocks_and_no_load() -> None:
    found = sample("S24")
    assert (found.gpu_load, found.gpu_clock_mhz) == (None, 314.0)
    assert "NVML" in found.missing["gpu_load"]
    assert "GR3D_FREQ" in sample("S26").missing["gpu_load"]


def test_a_process_replays_and_ends_when_closed(tmp_path: Path) -> None:
    program = install(tmp_path, [LINES["S16"]])
    sensor = TegrastatsSensor(str(program), "orin nano", interval_ms=20)
    try:
        pid = sensor.pid
        assert pid is not None
        before_s = time.monotonic()
        found = sensor.sample(before_s)
        assert (found.power_w, found.gpu_load, found.period_s) == (pytest.approx(16.321), 0.99, 0.02)
        assert found.taken_s >= before_s
    finally:
        sensor.close()
    assert not is_running(pid)
    assert "ended with status" in sensor.sample(time.monotonic()).missing[POWER]
    sensor.close()


def test_energy_of_a_replayed_board(tmp_path: Path) -> None:
    """Two lines in turn: the mean lies between them, and the recorder sees new lines only."""
    program = install(tmp_path, [LINES["S16"], LINES["S17"]])
    sensor = TegrastatsSensor(str(program), "orin nano", interval_ms=20)
    from_s = sensor.sample(time.monotonic()).taken_s
    try:
        with PowerRecorder(sensor, period_s=0.01) as recorder:
            while recorder.energy(from_s, time.monotonic()).covered_s < 0.3:
                pass
            energy = recorder.energy(from_s, time.monotonic())
    finally:
        sensor.close()
    assert energy.mean_w is not None
    assert 5.251 < energy.mean_w < 16.321
    assert energy.joules == pytest.approx(energy.mean_w * energy.covered_s)
    assert (energy.source, energy.covers) == ("tegrastats", "module")


def test_a_program_that_is_absent_is_a_reason(tmp_path: Path) -> None:
    sensor = TegrastatsSensor(str(tmp_path / "tegrastats"))
    assert sensor.pid is None
    assert "cannot be started: No such file" in sensor.sample(0.0).missing[POWER]
    sensor.close()


def test_a_program_that_ends_is_a_reason(tmp_path: Path) -> None:
    program = install(tmp_path, [LINES["S16"]], repeat=False, status=3)
    sensor = TegrastatsSensor(str(program), "orin nano", interval_ms=1)
    while (found := sensor.sample(time.monotonic())).power_w is not None:
        pass
    assert found.missing[POWER] == "tegrastats ended with status 3"
    sensor.close()


def test_garbage_and_a_half_line_are_no_samples(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    half = LINES["S16"][:200]
    program.write_text(f"#!/bin/sh\necho 'no such device'\nprintf '\\377\\376\\n'\nprintf '%s' '{half}'\nexit 0\n")
    program.chmod(0o755)
    sensor = TegrastatsSensor(str(program), "orin nano")
    assert sensor.sample(time.monotonic()).rails_mw == ()
    assert "tegrastats" in sensor.sample(time.monotonic()).missing[POWER]
    sensor.close()


def test_a_program_that_falls_silent_is_a_reason(tmp_path: Path) -> None:
    program = install(tmp_path, [LINES["S16"]])
    sensor = TegrastatsSensor(str(program), "orin nano", interval_ms=10_000)
    taken_s = sensor.sample(time.monotonic()).taken_s
    found = sensor.sample(taken_s + 500.0)
    assert found.power_w is None
    assert found.missing[POWER] == "the last line of tegrastats is 500.0 s old"
    sensor.close()


def test_the_end_of_an_endless_line_is_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.device.sensors.tegrastats.FIRST_LINE_S", 0.3)
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\nprintf '%0{LONGEST_LINE_BYTES}d' 0\necho '{LINES['S16']}'\nexec sleep 600\n")
    program.chmod(0o755)
    sensor = TegrastatsSensor(str(program), "orin nano")
    found = sensor.sample(time.monotonic())
    sensor.close()
    assert found.missing[POWER] == "tegrastats wrote no whole line in 0.3 s"


@pytest.mark.timeout(30)
def test_a_program_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\ntrap '' TERM\necho '{LINES['S16']}'\nexec sleep 600\n")
    program.chmod(0o755)
    sensor = TegrastatsSensor(str(program), "orin nano")
    assert sensor.sample(time.monotonic()).power_w is not None
    pid = sensor.pid
    sensor.close()
    assert pid is not None
    assert not is_running(pid)
