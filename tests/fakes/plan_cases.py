"""The cases of tests/planner/cases: small clusters as data, made into requests for plans."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.answer import PlanRequest
from planner.cost import hidden_bytes
from planner.profile import DeviceProfile, LinkProfile, PowerProfile
from planner.workload import Workload
from tests.fakes.random_profiles import plain_device, plain_link, plain_profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CASES = Path(__file__).parents[1] / "planner" / "cases" / "plans.toml"
WORKLOAD = Workload(
    quantization="fp32", boundary="fp16", codec="fp16", prompt=1, tokens=64, context=128, counts_workspace=False
)


def load_cases() -> list[dict[str, Any]]:
    return list(tomllib.loads(CASES.read_text(encoding="utf-8"))["cases"])


def request_of(case: dict[str, Any]) -> PlanRequest:
    devices = [_device(**entry) for entry in case["devices"]]
    profile = plain_profile(*devices)
    size = hidden_bytes(profile.spec.hidden_size, WORKLOAD.codec)
    names = [device.name for device in devices]
    if "links" in case:
        links = tuple(_link(entry["from"], entry["to"], entry["transfer_ms"], size) for entry in case["links"])
    else:
        links = tuple(_link(a, b, 0.5, size) for a in names for b in names if a != b)
    return PlanRequest(
        profile=replace(profile, links=links),
        workload=replace(WORKLOAD, sessions=case.get("sessions", 1)),
        objective=case.get("objective", "latency"),
        source=case.get("source"),
        privacy=case.get("privacy", "source-first"),
        replicas=case.get("replicas", False),
    )


def _device(
    *, name: str, layer_ms: float, memory_mib: int, host: str = "", idle_w: float | None = None, load_w: float = 0.0
) -> DeviceProfile:
    power = None
    if idle_w is not None:
        power = PowerProfile(idle_w=idle_w, decode_w=load_w, prefill_w=load_w, source="sysfs")
    return plain_device(name, layer_ms=float(layer_ms), memory_mib=memory_mib, host=host or name, power=power)


def _link(a: str, b: str, transfer_ms: float, size_bytes: int) -> LinkProfile:
    return plain_link(a, b, latency_ms=0.5, bandwidth=1e3 * size_bytes / transfer_ms)
