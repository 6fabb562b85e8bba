"""Testbeds of papers as profiles: devices, links and constants from `testbeds/*.toml`, nothing measured here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from itertools import permutations

from planner.catalog import find_model, packaged_table
from planner.errors import UnknownName
from planner.model_spec import ModelSpec
from planner.profile import (
    ClusterProfile,
    DecodePoint,
    DeviceProfile,
    HeadPoint,
    LinkProfile,
    PowerProfile,
    PrefillPoint,
    Timing,
)
from planner.workload import Workload

_BYTES_PER_S_AND_MBIT = 1e6 / 8
_PREFILL_TOKENS = (1, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Testbed:
    """A profile with the settings that belong to it."""

    __test__ = False
    """Not a test, whatever pytest makes of the name."""

    name: str
    title: str
    profile: ClusterProfile
    defaults: Workload
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    title: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    board: str
    count: int
    memory_gib: float
    usable_fraction: float
    tflops: float
    idle_w: float
    load_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    layer_ms: float
    head_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    growth_per_row: float
    most_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    between: tuple[str, str]
    bandwidth_mbit_per_s: float
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Links:
    bandwidth_mbit_per_s: float
    latency_ms: float
    pairs: tuple[_Pair, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    testbed: _Header
    defaults: Workload
    devices: dict[str, _Kind]
    models: dict[str, dict[str, _Times]]
    batch: _Batch
    links: _Links


def names() -> tuple[str, ...]:
    found = (entry.name for entry in files("planner").joinpath("testbeds").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def load_testbed(name: str, model_name: str) -> Testbed:
    """Raises UnknownName for a testbed we do not have and for a model it has no times of."""
    if name not in names():
        raise UnknownName("testbed", name, names())
    table = packaged_table("testbeds", name, _File)
    times = table.models.get(model_name.lower())
    if times is None:
        raise UnknownName(f"model of testbed {name}, which has {', '.join(table.models)}:", model_name, table.models)
    spec = find_model(model_name).spec
    devices = tuple(
        _device(f"{kind}-{index}", entry, times[kind], table.batch, spec)
        for kind, entry in table.devices.items()
        for index in range(entry.count)
    )
    profile = ClusterProfile(
        model=model_name.lower(),
        spec=spec,
        quantization=table.defaults.quantization,
        block_size=table.defaults.block_size,
        boundary=table.defaults.boundary,
        devices=devices,
        links=_links([device.name for device in devices], table.links),
    )
    return Testbed(name, table.testbed.title, profile, table.defaults, table.testbed.source)


def _device(name: str, kind: _Kind, times: _Times, batch: _Batch, spec: ModelSpec) -> DeviceProfile:
    rows = (1, batch.most_rows)
    growth = [1 + batch.growth_per_row * (count - 1) for count in rows]
    # A prompt streams the weights once, until its arithmetic takes longer; two operations per weight and token.
    qkv = spec.q_size + 2 * spec.kv_size
    weights = spec.hidden_size * (qkv + spec.q_size + 3 * spec.intermediate_size)
    ms_per_token = 2 * weights / (kind.tflops * 1e9)
    return DeviceProfile(
        name=name,
        host=name,
        provider=kind.board,
        memory_bytes=int(kind.memory_gib * kind.usable_fraction * (1 << 30)),
        decode=tuple(
            DecodePoint(rows=count, context=0, layer=Timing(ms=times.layer_ms * factor))
            for count, factor in zip(rows, growth, strict=True)
        ),
        prefill=tuple(
            PrefillPoint(tokens=tokens, layer=Timing(ms=max(times.layer_ms, tokens * ms_per_token)))
            for tokens in _PREFILL_TOKENS
        ),
        head=tuple(
            HeadPoint(rows=count, head=Timing(ms=times.head_ms * factor))
            for count, factor in zip(rows, growth, strict=True)
        ),
        power=PowerProfile(idle_w=kind.idle_w, decode_w=kind.load_w, prefill_w=kind.load_w, source="estimate"),
        fingerprint={"board": kind.board},
        estimated=True,
    )


def _links(devices: list[str], links: _Links) -> tuple[LinkProfile, ...]:
    special = {frozenset(pair.between): pair for pair in links.pairs}
    found = []
    for a, b in permutations(devices, 2):
        pair = special.get(frozenset((a, b)), links)
        found.append(
            LinkProfile(
                source=a,
                destination=b,
                latency_ms=pair.latency_ms,
                bandwidth_bytes_per_s=pair.bandwidth_mbit_per_s * _BYTES_PER_S_AND_MBIT,
                estimated=True,
            )
        )
    return tuple(found)
