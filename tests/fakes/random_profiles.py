"""Random measured clusters, workloads and routes: small models, ragged grids of points, links missing or lopsided."""

from __future__ import annotations

import random
from dataclasses import replace

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
from planner.types import LayerRange, Route, Stage
from planner.workload import Workload
from tests.fakes.random_weights import SMALL


def small_spec(num_layers: int = 6) -> ModelSpec:
    return replace(
        SMALL,
        num_layers=num_layers,
        hidden_size=256,
        intermediate_size=512,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        vocab_size=1000,
        max_positions=4096,
        sliding_windows=(None,) * num_layers,
    )


def plain_device(name: str, *, layer_ms: float = 2.0, memory_mib: int = 4096, **fields: object) -> DeviceProfile:
    """A device whose steps take the same whatever they hold, and whose prompt takes as much per token."""
    made = DeviceProfile(
        name=name,
        host=name,
        provider="CPUExecutionProvider",
        memory_bytes=memory_mib << 20,
        decode=(DecodePoint(rows=1, context=0, layer=Timing(ms=layer_ms)),),
        prefill=(PrefillPoint(tokens=1, layer=Timing(ms=layer_ms)),),
        head=(HeadPoint(rows=1, head=Timing(ms=1.0)),),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def plain_link(a: str, b: str, *, latency_ms: float = 0.5, bandwidth: float = 1e6) -> LinkProfile:
    return LinkProfile(source=a, destination=b, latency_ms=latency_ms, bandwidth_bytes_per_s=bandwidth)


def plain_profile(*devices: DeviceProfile, num_layers: int = 6, links: bool = True) -> ClusterProfile:
    """All devices joined by equal links."""
    names = [device.name for device in devices]
    return ClusterProfile(
        model="small",
        spec=small_spec(num_layers),
        quantization="fp32",
        block_size=128,
        boundary="fp16",
        devices=devices,
        links=tuple(plain_link(a, b) for a in names for b in names if a != b and links),
    )


def random_profile(rng: random.Random, *, max_devices: int = 4, max_layers: int = 8) -> ClusterProfile:
    names = [f"device-{index}" for index in range(rng.randint(1, max_devices))]
    links = tuple(
        LinkProfile(
            source=a,
            destination=b,
            latency_ms=rng.choice([0.0, rng.uniform(0, 5)]),
            bandwidth_bytes_per_s=rng.uniform(1e4, 1e8),
        )
        for a in names
        for b in names
        if a != b and rng.random() < 0.9
    )
    profile = plain_profile(*(random_device(rng, name) for name in names), num_layers=rng.randint(1, max_layers))
    return replace(profile, links=links)


def random_device(rng: random.Random, name: str) -> DeviceProfile:
    def timing() -> Timing:
        return Timing(ms=rng.uniform(0.1, 20))

    power = None
    if rng.random() < 0.8:
        power = PowerProfile(
            idle_w=rng.uniform(0, 10), decode_w=rng.uniform(0, 60), prefill_w=rng.uniform(0, 60), source="sysfs"
        )
    contexts = {rows: _some(rng, [0, 16, 128, 1000]) for rows in _some(rng, [1, 2, 4, 8])}
    return DeviceProfile(
        name=name,
        host=rng.choice(["", "one", name]),
        provider="CPUExecutionProvider",
        memory_bytes=rng.randint(20, 60) << 20,
        decode=tuple(DecodePoint(rows=r, context=c, layer=timing()) for r, places in contexts.items() for c in places),
        prefill=tuple(PrefillPoint(tokens=tokens, layer=timing()) for tokens in _some(rng, [1, 8, 32, 128])),
        head=tuple(HeadPoint(rows=rows, head=timing()) for rows in _some(rng, [1, 2, 8])),
        embedding_ms=rng.choice([0.0, rng.uniform(0, 1)]),
        stage_ms=rng.choice([0.0, rng.uniform(0, 2)]),
        power=power,
    )


def random_workload(rng: random.Random) -> Workload:
    return Workload(
        quantization="fp32",
        codec=rng.choice(["fp32", "fp16", "bf16", "int8"]),
        prompt=rng.choice([1, 2, rng.randint(1, 400)]),
        tokens=rng.choice([1, rng.randint(1, 200)]),
        sessions=rng.randint(1, 6),
        context=1024,
        chunk=rng.choice([1, 2, 3, 32, 128]),
        counts_workspace=rng.random() < 0.7,
        counts_embedding=rng.random() < 0.3,
    )


def random_route(rng: random.Random, profile: ClusterProfile, *, ends_at_source: bool = False) -> Route:
    """Distinct devices from the first on, layers cut anywhere; the first may come again at the end."""
    layers = profile.spec.num_layers
    names = [device.name for device in profile.devices]
    others = rng.sample(names[1:], rng.randint(0, min(len(names), layers) - 1))
    used = [names[0], *others]
    if ends_at_source and others and len(used) < layers:
        used.append(names[0])
    cuts = sorted(rng.sample(range(1, layers), len(used) - 1))
    edges = [0, *cuts, layers]
    stages = (Stage(name, LayerRange(edges[place], edges[place + 1])) for place, name in enumerate(used))
    return Route(tuple(stages), micro_batches=rng.randint(1, 4), rows=rng.randint(1, 9))


def _some(rng: random.Random, values: list[int]) -> list[int]:
    return rng.sample(values, rng.randint(1, len(values)))
