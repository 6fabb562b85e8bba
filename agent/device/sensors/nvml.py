"""A discrete NVIDIA GPU, or a Thor's, by NVIDIA's management library; needs the package nvidia-ml-py.

Every question is asked by itself: boards answer some and refuse others, and a refusal is no zero. An Orin refuses all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from agent.device.sensors.sample import POWER, Sample, no_sample

SOURCE = "nvml"


class NvmlSensor:
    """The first GPU in NVML's order. `library` is the module pynvml, imported when it is not given."""

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._gpu: Any = None
        self._refused = ""
        try:
            self._library = library if library is not None else importlib.import_module("pynvml")
        except ImportError:
            self._refused = "the package nvidia-ml-py is not installed (pip install edgectl[nvml])"
            return
        try:
            self._library.nvmlInit()
            self._gpu = self._library.nvmlDeviceGetHandleByIndex(0)
        except self._library.NVMLError as problem:
            self._refused = f"NVML: {problem}"

    @property
    def is_there(self) -> bool:
        return self._gpu is not None

    def sample(self, now_s: float) -> Sample:
        library, gpu = self._library, self._gpu
        if gpu is None:
            return no_sample(now_s, SOURCE, self._refused)
        missing: dict[str, str] = {}

        def ask(name: str, question: Callable[[], float]) -> float | None:
            try:
                return question()
            except library.NVMLError as problem:
                missing[name] = f"NVML: {problem}"
            except AttributeError as problem:
                missing[name] = f"this nvidia-ml-py is too old: {problem}"
            return None

        degrees = ask(
            "temperatures_c",
            lambda: float(library.nvmlDeviceGetTemperature(gpu, library.NVML_TEMPERATURE_GPU)),
        )
        missing["cpu_clock_mhz"] = "NVML knows the GPU only"
        return Sample(
            taken_s=now_s,
            source=SOURCE,
            covers="GPU",
            power_w=ask(POWER, lambda: library.nvmlDeviceGetPowerUsage(gpu) / 1000),
            energy_j=ask("energy_j", lambda: library.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000),
            gpu_load=ask("gpu_load", lambda: library.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
            gpu_clock_mhz=ask(
                "gpu_clock_mhz", lambda: float(library.nvmlDeviceGetClockInfo(gpu, library.NVML_CLOCK_GRAPHICS))
            ),
            memory_clock_mhz=ask(
                "memory_clock_mhz", lambda: float(library.nvmlDeviceGetClockInfo(gpu, library.NVML_CLOCK_MEM))
            ),
            temperatures_c={} if degrees is None else {"gpu": degrees},
            missing=missing,
        )

    def close(self) -> None:
        if self._gpu is None:
            return
        self._gpu = None
        self._refused = "the sensor is closed"
        try:
            self._library.nvmlShutdown()
        except self._library.NVMLError as problem:
            self._refused = f"NVML: {problem}"
