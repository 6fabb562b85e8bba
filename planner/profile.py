"""What was measured about devices and links for one model: the vocabulary of profiles.

The agent fills a DeviceProfile and LinkProfiles, `edgectl profile` collects them into a ClusterProfile, `cost` reads
it; `profile_json` is its file. Standard library only: a device that runs the agent imports this file. Every number is
checked when it is made, so a profile that exists is usable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from planner.model_spec import ModelSpec
from planner.types import BoundaryType, Quantization

SCHEMA = 1


def _check(owner: object, *, positive: tuple[str, ...] = (), at_least_zero: tuple[str, ...] = ()) -> None:
    """ValueError naming the first field that is no such number; None stands for unknown and passes."""
    for names, smallest in ((positive, "a positive number"), (at_least_zero, "a number from 0")):
        for name in names:
            value = getattr(owner, name)
            if value is None:
                continue
            if not math.isfinite(value) or value < 0 or (value == 0 and names is positive):
                raise ValueError(f"{name} must be {smallest}, it is {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One point of a curve: the median of many runs. Estimates have no samples."""

    ms: float
    p95_ms: float | None = None
    samples: int = 0
    outliers: int = 0
    """Runs beyond three times the median absolute deviation from the median, times 1.4826."""

    def __post_init__(self) -> None:
        _check(self, positive=("ms", "p95_ms"), at_least_zero=("samples", "outliers"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    """One decoder layer, one new token in each of `rows` rows that hold `context` tokens."""

    rows: int
    context: int
    layer: Timing

    def __post_init__(self) -> None:
        _check(self, positive=("rows",), at_least_zero=("context",))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    """One decoder layer over a chunk of `tokens` tokens of one row."""

    tokens: int
    layer: Timing

    def __post_init__(self) -> None:
        _check(self, positive=("tokens",))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPoint:
    """Final norm, head and greedy choice for `rows` rows."""

    rows: int
    head: Timing

    def __post_init__(self) -> None:
        _check(self, positive=("rows",))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerProfile:
    """Power of the whole device, from its total rail."""

    idle_w: float
    decode_w: float
    prefill_w: float
    source: str
    """Where it was read: sysfs, tegrastats, jtop or nvml; estimate for a catalogue entry."""
    joules_per_token_layer: float | None = None
    """One layer, one decoded token, idle power included, as integrated while it was measured."""

    def __post_init__(self) -> None:
        _check(self, at_least_zero=("idle_w", "decode_w", "prefill_w", "joules_per_token_layer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCheck:
    """Memory that the measured layers took, beside the formula the planner places by."""

    measured_bytes: int
    formula_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """One device and one model's layers on it."""

    name: str
    host: str
    """Devices of one host share its cores and its memory (boot id)."""
    provider: str
    memory_bytes: int
    """What a model may take."""
    decode: tuple[DecodePoint, ...]
    prefill: tuple[PrefillPoint, ...]
    head: tuple[HeadPoint, ...]
    embedding_ms: float = 0.0
    """One token."""
    stage_ms: float = 0.0
    """What a run costs beside its layers: unpacking, packing, the calls."""
    power: PowerProfile | None = None
    memory: MemoryCheck | None = None
    fingerprint: dict[str, str | float | None] = field(default_factory=dict)
    """Board, L4T, power mode, clocks, versions, threads, temperatures; None is unknown, see `missing`."""
    missing: dict[str, str] = field(default_factory=dict)
    """Field → why it could not be measured."""
    estimated: bool = False
    """From the device's specification, not measured."""

    def __post_init__(self) -> None:
        _check(self, positive=("memory_bytes",), at_least_zero=("embedding_ms", "stage_ms"))
        for name in ("decode", "prefill", "head"):
            if not getattr(self, name):
                raise ValueError(f"{name} needs at least one point")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """One direction between two devices: b bytes take `latency_ms + b / bandwidth` from call to delivery."""

    source: str
    destination: str
    latency_ms: float
    bandwidth_bytes_per_s: float
    rtt_p50_ms: float | None = None
    rtt_p95_ms: float | None = None
    jitter_ms: float | None = None
    """Mean distance of consecutive round trips (RFC 3550, section 6.4.1, without the smoothing)."""
    estimated: bool = False

    def __post_init__(self) -> None:
        _check(
            self,
            positive=("bandwidth_bytes_per_s",),
            at_least_zero=("latency_ms", "rtt_p50_ms", "rtt_p95_ms", "jitter_ms"),
        )
        if self.source == self.destination:
            raise ValueError(f"a link from {self.source} to itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProfile:
    """Devices and links as measured for one model. A pair without a link cannot be neighbours on a route."""

    model: str
    spec: ModelSpec
    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    devices: tuple[DeviceProfile, ...]
    """In the order of cluster.toml: the first is the source unless another is named."""
    links: tuple[LinkProfile, ...]
    created: str = ""
    """When, ISO 8601 in UTC; empty for what was never measured."""
    version: str = ""
    """Of edgectl."""

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        if not names:
            raise ValueError("devices: a profile needs at least one")
        known = set(names)
        if len(known) < len(names):
            raise ValueError(f"devices: {next(name for name in names if names.count(name) > 1)} is there twice")
        for link in self.links:
            for name in (link.source, link.destination):
                if name not in known:
                    raise ValueError(f"links: {name} is not among the devices: {', '.join(names)}")

    def device(self, name: str) -> DeviceProfile:
        """Raises KeyError for a device that is not in the profile."""
        for device in self.devices:
            if device.name == name:
                return device
        raise KeyError(name)
