"""jetson-stats as a sensor, for who asks for it: `jtop = true` in agent.toml and the extra edgectl[jtop].

Its service runs as root and members of the group jtop can become root through it, so no other source is left out for
it, and nothing here is loaded unless it is asked for. Its own total is not used: it counts some rails twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from agent.device.sensors.rails import total_power_w
from agent.device.sensors.sample import POWER, Sample, no_sample

SOURCE = "jtop"
INTERVAL_S = 0.5


class JtopSensor:
    """`client` is the class `jtop.jtop`, imported when it is not given."""

    def __init__(self, board: str = "", client: Any = None) -> None:
        self._board = board
        self._client: Any = None
        self._refused = ""
        try:
            client = client if client is not None else importlib.import_module("jtop").jtop
            started = client(interval=INTERVAL_S)
            started.start()
            self._client = started
        except ImportError:
            self._refused = "the package jetson-stats is not installed (pip install edgectl[jtop])"
        except Exception as problem:  # jtop has errors of its own and passes on those of its pickled connection
            self._refused = f"jtop: {problem}"

    @property
    def is_there(self) -> bool:
        return self._client is not None

    def sample(self, now_s: float) -> Sample:
        if self._client is None:
            return no_sample(now_s, SOURCE, self._refused)
        try:
            if not self._client.ok(spin=True):
                return no_sample(now_s, SOURCE, "the connection to jtop.service ended")
            return _sample_of(self._client, self._board, now_s)
        except Exception as problem:  # as above: whatever it raises, there is no value
            return no_sample(now_s, SOURCE, f"jtop: {problem!r}")

    def close(self) -> None:
        if self._client is None:
            return
        client, self._client = self._client, None
        self._refused = "the sensor is closed"
        try:
            client.close()
        except Exception as problem:  # as above
            self._refused = f"jtop: {problem!r}"


def _sample_of(client: Any, board: str, now_s: float) -> Sample:
    missing: dict[str, str] = {}
    rails_mw = tuple(
        (name, float(rail["power"])) for name, rail in client.power.get("rail", {}).items() if "power" in rail
    )
    power_w, reason = total_power_w(board, rails_mw)
    if power_w is None:
        missing[POWER] = reason
    gpu: Mapping[str, Any] = next(iter(client.gpu.values()), {})
    load, clock_khz = gpu.get("status", {}).get("load"), gpu.get("freq", {}).get("cur")
    memory_khz = client.memory.get("EMC", {}).get("cur")
    core_clocks_khz = [
        core["freq"]["cur"] for core in client.cpu.get("cpu", []) if core.get("online") and "freq" in core
    ]
    values: dict[str, Any] = {
        "gpu_load": load / 100 if load is not None else None,
        "gpu_clock_mhz": clock_khz / 1000 if clock_khz else None,
        "memory_clock_mhz": memory_khz / 1000 if memory_khz else None,
        "cpu_clock_mhz": max(core_clocks_khz) / 1000 if core_clocks_khz else None,
    }
    missing.update({name: "jtop does not tell" for name, value in values.items() if value is None})
    temperatures = {
        name.lower(): float(zone["temp"])
        for name, zone in client.temperature.items()
        if zone.get("online", True) and zone["temp"] > -200
    }
    return Sample(
        taken_s=now_s,
        source=SOURCE,
        covers="module",
        rails_mw=rails_mw,
        power_w=power_w,
        temperatures_c=temperatures,
        missing=missing,
        period_s=INTERVAL_S,
        **values,
    )
