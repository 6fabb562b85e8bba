"""A second opinion: a request followed step by step through a route, straight from the measured points.

Shares no arithmetic with `cost`, `interpolation`, `stage_memory`, `problem` or `prediction`; `plan --verify` and a
property test hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.memory import WORKSPACE_CHUNK, memory_breakdown, workspace_bytes
from planner.profile import ClusterProfile, DeviceProfile
from planner.types import Codec, Route, Stage
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class Recost:
    """One route under one workload; the fields that Prediction has, under the same names."""

    ms_per_token: float
    time_to_first_token_ms: float
    tokens_per_s: float
    """With the micro-batches and rows of the route itself."""
    joules_per_token: float | None
    objective_ms: float
    memory_bytes: tuple[int, ...]
    """By stage: all that its device holds."""
    fits: bool


@dataclass(slots=True)
class _Ledger:
    """What a request has taken so far."""

    ms: float = 0.0
    joules: float = 0.0
    """Above idle."""


def recost(profile: ClusterProfile, workload: Workload, route: Route, sessions: int) -> Recost:
    """What `route` costs. A hop without a link takes forever. Raises KeyError for a device the profile lacks."""
    walk = _Walk(profile, workload, route)
    first = _Ledger()
    left = workload.prompt
    while left:
        tokens = min(left, workload.chunk)
        # The token loop leaves no single token for the last chunk.
        if left - tokens == 1 and tokens > 1:
            tokens -= 1
        left -= tokens
        walk.chunk(tokens, is_last=left == 0, ledger=first)
    step = _Ledger()
    walk.step(1, step)
    generated = workload.tokens
    whole_ms = first.ms + (generated - 1) * step.ms if math.isfinite(first.ms) else math.inf
    memory = [_held_bytes(profile, workload, route, stage.device, sessions) for stage in route.stages]
    return Recost(
        ms_per_token=step.ms,
        time_to_first_token_ms=first.ms,
        tokens_per_s=walk.tokens_per_s(),
        joules_per_token=_joules_per_token(
            first.joules + (generated - 1) * step.joules, walk.idle_w(), whole_ms, generated
        ),
        objective_ms=whole_ms / generated,
        memory_bytes=tuple(memory),
        fits=all(
            held <= profile.device(stage.device).memory_bytes for held, stage in zip(memory, route.stages, strict=True)
        ),
    )


def _joules_per_token(above_idle: float, idle_w: float | None, whole_ms: float, generated: int) -> float | None:
    if idle_w is None:
        return None
    return (above_idle + idle_w * whole_ms / 1e3) / generated if math.isfinite(whole_ms) else math.inf


def _token_bytes(hidden_size: int, codec: Codec) -> int:
    if codec == "int4":
        return (hidden_size + 1) // 2 + 2 * ((hidden_size + 31) // 32)
    per_token = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}[codec] * hidden_size
    return per_token + (4 if codec == "int8" else 0)


class _Walk:
    """Frames on their way along a route."""

    def __init__(self, profile: ClusterProfile, workload: Workload, route: Route) -> None:
        self._profile = profile
        self._workload = workload
        self._stages = [(profile.device(stage.device), stage) for stage in route.stages]
        self._route = route
        self._links = {(link.source, link.destination): link for link in profile.links}
        self._token_bytes = _token_bytes(profile.spec.hidden_size, workload.codec)

    def chunk(self, tokens: int, is_last: bool, ledger: _Ledger) -> None:
        """Prompt tokens of one row; the last chunk goes through the head and brings a token back."""
        for place, (device, stage) in enumerate(self._stages):
            layer_ms = _prefill_layer_ms(device, tokens)
            ms = device.stage_ms + sum(layer_ms for _ in stage.layers)
            ms += tokens * device.embedding_ms if place == 0 else 0.0
            ms += self._head_ms(device, 1) if is_last and place == len(self._stages) - 1 else 0.0
            self._account(device, ms, ledger, prefill=True)
            ledger.ms += self._hop_ms(place, tokens * self._token_bytes)
        ledger.ms += self._back_ms(1) if is_last else 0.0

    def step(self, rows: int, ledger: _Ledger) -> None:
        """One decode step and the tokens' way back."""
        for place, (device, stage) in enumerate(self._stages):
            self._account(device, self._decode_ms(place, device, stage, rows), ledger, prefill=False)
            ledger.ms += self._hop_ms(place, rows * self._token_bytes)
        ledger.ms += self._back_ms(rows)

    def tokens_per_s(self) -> float:
        """Rows of all micro-batches per turn of the ring, or of one per turn of its slowest server."""
        rows, micro_batches = self._route.rows, self._route.micro_batches
        ring = _Ledger()
        self.step(rows, ring)
        busy: dict[str, float] = {}
        slowest = 0.0
        for place, (device, stage) in enumerate(self._stages):
            server = device.host or device.name
            busy[server] = busy.get(server, 0.0) + self._decode_ms(place, device, stage, rows)
            hop_ms = self._hop_ms(place, rows * self._token_bytes)
            slowest = max(slowest, hop_ms - self._hop_ms(place, 0) if math.isfinite(hop_ms) else hop_ms)
        return min(micro_batches * rows / ring.ms, rows / max(slowest, *busy.values())) * 1e3

    def idle_w(self) -> float | None:
        """Of all devices of the route; None when one is unknown."""
        powers = {device.name: device.power for device, _ in self._stages}
        known = [power.idle_w for power in powers.values() if power is not None]
        return sum(known) if len(known) == len(powers) else None

    def _decode_ms(self, place: int, device: DeviceProfile, stage: Stage, rows: int) -> float:
        context = self._workload.prompt + self._workload.tokens // 2
        ms = device.stage_ms + len(stage.layers) * _decode_layer_ms(device, rows, context)
        ms += rows * device.embedding_ms if place == 0 else 0.0
        return ms + (self._head_ms(device, rows) if place == len(self._stages) - 1 else 0.0)

    def _head_ms(self, device: DeviceProfile, rows: int) -> float:
        return _along([point.rows for point in device.head], [point.head.ms for point in device.head], rows)

    def _hop_ms(self, place: int, size_bytes: int) -> float:
        """From a place to the next one; nothing behind the last."""
        if place == len(self._stages) - 1:
            return 0.0
        return self._link_ms(self._stages[place][0].name, self._stages[place + 1][0].name, size_bytes)

    def _back_ms(self, rows: int) -> float:
        return self._link_ms(self._stages[-1][0].name, self._stages[0][0].name, 4 * rows)

    def _link_ms(self, a: str, b: str, size_bytes: int) -> float:
        if a == b:
            return 0.0
        link = self._links.get((a, b))
        return link.latency_ms + size_bytes * 1000 / link.bandwidth_bytes_per_s if link else math.inf

    def _account(self, device: DeviceProfile, ms: float, ledger: _Ledger, *, prefill: bool) -> None:
        ledger.ms += ms
        if device.power is not None:
            busy_w = device.power.prefill_w if prefill else device.power.decode_w
            ledger.joules += max(busy_w - device.power.idle_w, 0) * ms / 1e3


def _decode_layer_ms(device: DeviceProfile, rows: int, context: int) -> float:
    measured = sorted({point.rows for point in device.decode})
    at_context = []
    for count in measured:
        points = [point for point in device.decode if point.rows == count]
        places = [point.context for point in points]
        values = [point.layer.ms for point in points]
        at_context.append(values[0] if len(values) == 1 else _along(places, values, context))
    return _along(measured, at_context, rows)


def _prefill_layer_ms(device: DeviceProfile, tokens: int) -> float:
    points = {1: _decode_layer_ms(device, 1, 0)}
    points.update((point.tokens, point.layer.ms) for point in device.prefill)
    return _along(list(points), list(points.values()), tokens)


def _along(places: Sequence[float], values: Sequence[float], at: float) -> float:
    """Between points the line through its neighbours; outside never faster than the nearest point makes likely."""
    order = np.argsort(places)
    x, y = np.asarray(places, dtype=float)[order], np.asarray(values, dtype=float)[order]
    if x[0] <= at <= x[-1]:
        return float(np.interp(at, x, y))
    if len(x) == 1:
        return float(y[0] * max(1.0, at / x[0]) if x[0] else y[0])
    if at > x[-1]:
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        return float(y[-1] + max(0.0, slope) * (at - x[-1]))
    slope = (y[1] - y[0]) / (x[1] - x[0])
    return float(y[0] - min(max(0.0, slope), y[0] / x[0]) * (x[0] - at))


def _held_bytes(profile: ClusterProfile, workload: Workload, route: Route, device: str, sessions: int) -> int:
    """Sum over the device's stages; what every stage has beside its layers counts once."""
    held, fixed = 0, []
    for stage in route.stages:
        if stage.device != device:
            continue
        parts = memory_breakdown(
            profile.spec,
            stage.layers,
            quantization=workload.quantization,
            block_size=workload.block_size,
            slots=sessions,
            context=workload.context,
        )
        held += parts.layers + parts.head + parts.kv
        held += parts.workspace if workload.counts_workspace else 0
        if workload.counts_embedding and stage.layers.start == 0:
            element_bytes = 4 if workload.quantization == "fp32" else 2
            held += profile.spec.vocab_size * profile.spec.hidden_size * element_bytes
        fixed.append(_beside_layers(profile, workload.context) if workload.counts_workspace else 0)
    return held - sum(fixed[1:])


def _beside_layers(profile: ClusterProfile, context: int) -> int:
    """Workspace that is there once however many layers there are: layers share it, all but one add a residual."""
    residual = 4 * min(WORKSPACE_CHUNK, context) * profile.spec.hidden_size
    return workspace_bytes(profile.spec, WORKSPACE_CHUNK, context) - residual
