"""Chooses the sensors of this machine: the kernel's files, tegrastats, jtop where asked for, NVML, a plain PC's.

The first that knows the power gives it; later ones are kept only for what the earlier do not know.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from agent.device.sensors.host import HostSensor
from agent.device.sensors.jetson import JetsonSensor, board_description
from agent.device.sensors.jtop import JtopSensor
from agent.device.sensors.nvml import NvmlSensor
from agent.device.sensors.sample import POWER, Sample, Sensor
from agent.device.sensors.tegrastats import TegrastatsSensor

TEGRASTATS = "tegrastats"
TEGRASTATS_OF_THE_SYSTEM = "usr/bin/tegrastats"
_SCALARS = ("gpu_load", "gpu_clock_mhz", "cpu_clock_mhz", "memory_clock_mhz")


def find_sensor(
    root: Path = Path("/"),
    *,
    board: str = "",
    tegrastats: str | None = None,
    jtop: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Sensor:
    """What can be known of this machine; always a sensor, for a machine that tells nothing one full of reasons.

    `board` is the owner's name of the board; without it the device tree is asked. `tegrastats` is the program to start;
    None looks on PATH and in /usr/bin. It is started only where the kernel's files do not give the power.
    """
    chosen: list[Sensor] = []
    absent: dict[str, str] = {}
    known = Sample(taken_s=clock(), source="")
    for source, open_sensor in _candidates(root, board, tegrastats, jtop):
        if _knows_power(known) and source in {"tegrastats", "jtop"}:
            continue
        sensor = open_sensor()
        if isinstance(sensor, str):
            absent[source] = sensor
            continue
        merged = merge([known, sensor.sample(clock())])
        if _extent(merged) > _extent(known):
            known = merged
            chosen.append(sensor)
        else:
            absent[source] = sensor.sample(clock()).missing.get(POWER, "knows nothing the others do not")
            sensor.close()
    return SensorChain(chosen, absent)


class SensorChain:
    """Several sensors as one: each value from the first that has it, with the reasons of all for what none has."""

    def __init__(self, sensors: Sequence[Sensor], absent: dict[str, str]) -> None:
        self._sensors = tuple(sensors)
        self._absent = absent

    def sample(self, now_s: float) -> Sample:
        sample = merge([sensor.sample(now_s) for sensor in self._sensors] or [Sample(taken_s=now_s, source="none")])
        if _knows_power(sample):
            return sample
        reasons = [sample.missing[POWER]] if POWER in sample.missing else []
        reasons += [f"{source}: {reason}" for source, reason in self._absent.items()]
        return replace(sample, missing={**sample.missing, POWER: "; ".join(reasons)})

    def close(self) -> None:
        for sensor in self._sensors:
            sensor.close()


def merge(samples: Sequence[Sample]) -> Sample:
    """One sample of several of one moment. Power, its rails and its moment come from the first that has a power."""
    of_power = next((sample for sample in samples if _knows_power(sample)), None)
    main = of_power or next((sample for sample in samples if sample.rails_mw), samples[0])
    missing: dict[str, str] = {}
    for sample in samples:
        for name, reason in sample.missing.items():
            said = f"{sample.source}: {reason}"
            missing[name] = f"{missing[name]}; {said}" if name in missing else said
    values = {
        name: next((value for sample in samples if (value := getattr(sample, name)) is not None), None)
        for name in _SCALARS
    }
    temperatures = next((sample.temperatures_c for sample in samples if sample.temperatures_c), {})
    for name, value in {**values, POWER: main.power_w, "energy_j": main.energy_j}.items():
        if value is not None:
            missing.pop(name, None)
    if temperatures:
        missing.pop("temperatures_c", None)
    return replace(
        main,
        gpu_load=values["gpu_load"],
        gpu_clock_mhz=values["gpu_clock_mhz"],
        cpu_clock_mhz=values["cpu_clock_mhz"],
        memory_clock_mhz=values["memory_clock_mhz"],
        temperatures_c=temperatures,
        over_current_events=next((s.over_current_events for s in samples if s.over_current_events), {}),
        missing=missing,
    )


def _candidates(
    root: Path, board: str, tegrastats: str | None, jtop: bool
) -> Iterator[tuple[str, Callable[[], Sensor | str]]]:
    """(source, what opens it or says why it is not there), in order of preference."""
    described = board_description(root, board)

    def kernel_files() -> Sensor | str:
        sensor = JetsonSensor(root, board)
        return sensor if sensor.is_there else "the kernel shows no power monitor (ina3221) and no Jetson GPU"

    def program() -> Sensor | str:
        in_system = root / TEGRASTATS_OF_THE_SYSTEM
        path = tegrastats or shutil.which(TEGRASTATS) or (str(in_system) if in_system.is_file() else None)
        return TegrastatsSensor(path, described) if path else "there is no such program on PATH or in /usr/bin"

    yield "sysfs", kernel_files
    yield "tegrastats", program
    if jtop:
        yield "jtop", lambda: JtopSensor(described)
    yield "nvml", NvmlSensor
    yield "host", lambda: HostSensor(root)


def _knows_power(sample: Sample) -> bool:
    return sample.power_w is not None or sample.energy_j is not None


def _extent(sample: Sample) -> int:
    """How much a sample tells."""
    told = [_knows_power(sample), bool(sample.rails_mw), bool(sample.temperatures_c)]
    return sum(told) + sum(getattr(sample, name) is not None for name in _SCALARS)
