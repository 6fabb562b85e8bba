"""Models and devices known by name: planning needs neither weights nor a device at hand.

`catalog/models.toml` has fields of public config.json files, `catalog/devices.toml` numbers of data sheets.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TypeVar

import msgspec

from planner.errors import BadDevices, UnknownName
from planner.model_spec import ModelSpec, parse_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Table = TypeVar("_Table")

MOST_DEVICES = 1000
"""In one list: beyond it planning takes minutes, and it is more likely a typo."""


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model by name."""

    name: str
    spec: ModelSpec
    runnable: bool
    """Whether agents can compute it; others can only be planned."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A board or card by its data sheet."""

    memory_gib: float
    usable_fraction: float
    """What a model may take of it; the rest is for system, desktop and runtime."""
    memory_gb_per_s: float
    """Peak memory bandwidth."""
    fp16_tflops: float
    """Dense, no sparsity."""
    fp32_tflops: float
    idle_w: float
    load_w: float
    note: str = ""

    @property
    def memory_bytes(self) -> int:
        """What a model may take."""
        return int(self.memory_gib * self.usable_fraction * (1 << 30))


@dataclass(frozen=True, slots=True)
class _ModelEntry:
    config: dict[str, object]
    null: tuple[str, ...] = ()
    """Fields of config.json that are null; TOML cannot say so."""
    runnable: bool = True
    note: str = ""


def packaged_table(folder: str, name: str, kind: type[_Table]) -> _Table:
    """A TOML file of this package, as `kind`."""
    text = files("planner").joinpath(folder).joinpath(f"{name}.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), kind)


@dataclass(frozen=True, slots=True)
class _Models:
    models: dict[str, _ModelEntry]


@dataclass(frozen=True, slots=True)
class _Devices:
    devices: dict[str, DeviceSpec]


def model_names() -> tuple[str, ...]:
    return tuple(_models())


def device_names() -> tuple[str, ...]:
    return tuple(_devices())


def find_model(name: str) -> CatalogModel:
    """Raises UnknownName with near names."""
    entry = _models().get(name.lower())
    if entry is None:
        raise UnknownName("model", name, _models())
    config = {**entry.config, **dict.fromkeys(entry.null)}
    return CatalogModel(name.lower(), parse_config(config), entry.runnable, entry.note)


def find_device(name: str) -> DeviceSpec:
    """Raises UnknownName with near names."""
    spec = _devices().get(name.lower())
    if spec is None:
        raise UnknownName("device", name, _devices())
    return spec


def parse_device_list(text: str) -> list[tuple[str, DeviceSpec]]:
    """Devices of `agx-orin-32gb*12,rtx-3090` in order, with a number behind the name of what is there repeatedly.

    Raises UnknownName and BadDevices naming the entry.
    """
    found: list[tuple[str, DeviceSpec]] = []
    for entry in text.split(","):
        name, star, times = (part.strip().lower() for part in entry.partition("*"))
        if not name:
            raise BadDevices(text, "an entry is empty; it looks like agx-orin-32gb*12,rtx-3090")
        if star and not (times.isascii() and times.isdigit() and 1 <= int(times[:6]) <= MOST_DEVICES):
            raise BadDevices(entry.strip(), f"behind * goes a number from 1 to {MOST_DEVICES}")
        found += [(name, find_device(name))] * (int(times) if star else 1)
    if len(found) > MOST_DEVICES:
        raise BadDevices(text, f"{len(found)} devices, at most {MOST_DEVICES}")
    total = Counter(name for name, _ in found)
    seen: Counter[str] = Counter()
    named = []
    for name, spec in found:
        named.append((name if total[name] == 1 else f"{name}-{seen[name]}", spec))
        seen[name] += 1
    return named


@cache
def _models() -> dict[str, _ModelEntry]:
    return packaged_table("catalog", "models", _Models).models


@cache
def _devices() -> dict[str, DeviceSpec]:
    return packaged_table("catalog", "devices", _Devices).devices
