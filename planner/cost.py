"""What a placement costs: the one place where measurements become numbers. See docs/cost-model.md.

EdgeShard (arXiv 2405.14371) equations 1 to 10, with what they leave out: prompt and answer weigh as they occur, links
have a latency, a token travels back and not its logits, memory counts KV cache, embedding, head and workspace, and a
stage's time depends on its rows and on what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from planner.device_classes import device_classes, link_matrices
from planner.device_times import DeviceTimes, chunk_lengths
from planner.errors import BadProfile, UnknownName
from planner.pipeline import PipelineTimes
from planner.problem import Costs, Problem, Segment
from planner.profile import ClusterProfile, DeviceProfile, PowerProfile
from planner.stage_memory import MemoryParts, stage_memory
from planner.types import Codec, LayerRange, Route, Stage
from planner.workload import Privacy, Workload

TOKEN_BYTES = 4
"""What travels back to the source per row. What frames add beside their payload is part of a link's latency."""

_CODEC_BYTES: dict[Codec, tuple[int, int]] = {"fp32": (4, 0), "fp16": (2, 0), "bf16": (2, 0), "int8": (1, 4)}
"""Bytes per element, and per token beside them (int8's scale)."""
_INT4_GROUP = 32
"""Elements that share a scale of two bytes in int4; two elements share a byte."""
_MOST_BYTES = 1 << 48
"""No layer and no device is larger; keeps sums over a model in the range of a 64-bit integer."""


def hidden_bytes(hidden_size: int, codec: Codec) -> int:
    """O: what one token of one row puts on the wire between two stages."""
    if codec == "int4":
        return -(-hidden_size // 2) + 2 * -(-hidden_size // _INT4_GROUP)
    per_element, per_token = _CODEC_BYTES[codec]
    return hidden_size * per_element + per_token


class CostModel:
    """One profile and one workload, answered device by device and as problems for the planners.

    Raises UnknownName for a source that is not in the profile, and BadProfile when the profile was taken with other
    weights than the workload asks for.
    """

    def __init__(
        self,
        profile: ClusterProfile,
        workload: Workload,
        *,
        source: str | None = None,
        privacy: Privacy = "source-first",
    ) -> None:
        self.profile = profile
        self.workload = workload
        self.source = source if source is not None else profile.devices[0].name
        self.privacy = privacy
        self.spec = profile.spec
        self._devices = {device.name: device for device in profile.devices}
        if self.source not in self._devices:
            raise UnknownName("device", self.source, self._devices)
        _check_weights(profile, workload)
        self.classes = device_classes(profile, self.source)
        """Interchangeable devices, the source's class first."""
        self.hidden_bytes = hidden_bytes(self.spec.hidden_size, workload.codec)
        self.chunks = chunk_lengths(workload.prompt, workload.chunk)
        self._parts: dict[int, MemoryParts] = {}
        self._place = {name: place for place, name in enumerate(self._devices)}
        self._latency_ms, self._bandwidth = link_matrices(profile)
        self._times = {name: DeviceTimes(device) for name, device in self._devices.items()}

    def device(self, name: str) -> DeviceProfile:
        if name not in self._devices:
            raise UnknownName("device", name, self._devices)
        return self._devices[name]

    # --- memory -------------------------------------------------------------------------------------------------------

    def memory_bytes(self, device: str, layers: LayerRange, sessions: int | None = None) -> int:
        """What `device` holds for one layer range, with KV cache for `sessions` sequences (the workload's if None)."""
        self.device(device)
        return self.memory_parts(sessions).of(layers, self.spec.num_layers)

    def memory_used_bytes(self, device: str, route: Route, sessions: int | None = None) -> int:
        """What `device` holds for all its stages of a route; what does not grow with the layers counts once."""
        ranges = [stage.layers for stage in route.stages if stage.device == device]
        shared = max(0, len(ranges) - 1) * self.memory_parts(sessions).stage
        return sum(self.memory_bytes(device, layers, sessions) for layers in ranges) - shared

    def memory_available_bytes(self, device: str) -> int:
        return self.device(device).memory_bytes

    def memory_parts(self, sessions: int | None = None) -> MemoryParts:
        """What adds up to `memory_bytes`, for any device."""
        sessions = self.workload.sessions if sessions is None else sessions
        if sessions not in self._parts:
            self._parts[sessions] = stage_memory(self.spec, self.workload, sessions)
        return self._parts[sessions]

    # --- time ---------------------------------------------------------------------------------------------------------

    def decode_ms(self, device: str, layers: LayerRange, rows: int = 1) -> float:
        """One decode step of `rows` rows in the middle of their answers (t_comp, with rows and context)."""
        self.device(device)
        times = self._times[device]
        ms = times.stage_ms + len(layers) * times.decode(rows, self.workload.mean_context)
        if layers.start == 0:
            ms += rows * times.embedding_ms
        return ms + times.head(rows) if layers.stop == self.spec.num_layers else ms

    def prefill_ms(self, device: str, layers: LayerRange) -> float:
        """The whole prompt of one row, chunk by chunk; the head once, for its last token."""
        self.device(device)
        times = self._times[device]
        ms = len(self.chunks) * times.stage_ms + len(layers) * sum(map(times.prefill, self.chunks))
        if layers.start == 0:
            ms += self.workload.prompt * times.embedding_ms
        return ms + times.head(1) if layers.stop == self.spec.num_layers else ms

    def latency_ms(self, a: str, b: str) -> float:
        """What a hop adds without the link being busy; inf without a link."""
        return self._link(a, b)[0]

    def transfer_ms(self, a: str, b: str, rows: int = 1) -> float:
        """How long `rows` hidden states keep the link busy (t_comm, without its latency); inf without a link."""
        return rows * self.hidden_bytes * self._link(a, b)[1]

    def return_ms(self, last: str, rows: int = 1) -> float:
        """Tokens, not logits, from the last stage to the source; 0 at the source."""
        latency_ms, ms_per_byte = self._link(last, self.source)
        return latency_ms + rows * TOKEN_BYTES * ms_per_byte

    def _link(self, a: str, b: str) -> tuple[float, float]:
        """Latency in ms and ms per byte."""
        at = self._place[self.device(a).name], self._place[self.device(b).name]
        if a == b:
            return 0.0, 0.0
        bandwidth = float(self._bandwidth[at])
        return (float(self._latency_ms[at]), 1e3 / bandwidth) if bandwidth else (math.inf, math.inf)

    def times(self, route: Route, rows: int = 1) -> PipelineTimes:
        """Service times of a route for micro-batches of `rows` rows; devices of one host are one server."""
        names = [stage.device for stage in route.stages]
        servers = tuple(self.device(name).host or name for name in names)
        return PipelineTimes(
            compute_ms=tuple(self.decode_ms(stage.device, stage.layers, rows) for stage in route.stages),
            transfer_ms=tuple(self.transfer_ms(a, b, rows) for a, b in pairwise(names)),
            latency_ms=tuple(self.latency_ms(a, b) for a, b in pairwise(names)),
            return_ms=self.return_ms(names[-1], rows),
            servers=servers if len(set(servers)) < len(servers) else (),
        )

    # --- problems -----------------------------------------------------------------------------------------------------

    def latency_problem(self) -> Problem:
        """Cost = ms per generated token of a whole request, (time to first token + (G - 1) * ms per token) / G."""
        ones = [1.0] * len(self.classes)
        return self._request_problem(ones, ones, 1.0)

    def energy_problem(self, idle_w: float) -> Problem:
        """Cost = joules per generated token when the devices used draw `idle_w` watts together while they wait.

        A device's busy time costs its power above idle; every moment of the request costs `idle_w`. Raises BadProfile
        when a device has no power.
        """
        powers = [self.power(members[0]) for members in self.classes]
        prefill = [1e-3 * (idle_w + max(0.0, power.prefill_w - power.idle_w)) for power in powers]
        decode = [1e-3 * (idle_w + max(0.0, power.decode_w - power.idle_w)) for power in powers]
        return self._request_problem(prefill, decode, 1e-3 * idle_w)

    def idle_w_by_class(self) -> Costs:
        """[K] watts. Raises BadProfile when a device has no power."""
        return np.array([self.power(members[0]).idle_w for members in self.classes])

    def pipeline_problem(self, rows: int, sessions: int) -> Problem:
        """Cost = ms of one step of a micro-batch of `rows` rows, with memory for `sessions` sequences."""
        times = [self._times[members[0]] for members in self.classes]
        context = self.workload.mean_context
        return self._problem(
            layer=[device.decode(rows, context) for device in times],
            first=[rows * device.embedding_ms for device in times],
            last=[device.head(rows) for device in times],
            stage=[device.stage_ms for device in times],
            waiting=1.0,
            latencies=1.0,
            hidden_states=rows,
            token_rows=rows,
            sessions=sessions,
        )

    def _request_problem(self, prefill: Sequence[float], decode: Sequence[float], waiting: float) -> Problem:
        """Mean per generated token of a request; a device's ms cost `prefill` and `decode`, those of a hop `waiting`.

        With P prompt and G generated tokens in C chunks, a token takes 1/G of the prefill, (G - 1)/G decode steps,
        (P + G - 1)/G hidden states and (C + G - 1)/G latencies per hop, and one way back.
        """
        generated = self.workload.tokens
        steps = generated - 1
        context = self.workload.mean_context
        layer, first, last, stage = [], [], [], []
        for members, per_prefill_ms, per_decode_ms in zip(self.classes, prefill, decode, strict=True):
            times = self._times[members[0]]
            chunks_ms = sum(map(times.prefill, self.chunks))
            layer.append(per_prefill_ms * chunks_ms + per_decode_ms * steps * times.decode(1, context))
            first.append(times.embedding_ms * (per_prefill_ms * self.workload.prompt + per_decode_ms * steps))
            last.append(times.head(1) * (per_prefill_ms + per_decode_ms * steps))
            stage.append(times.stage_ms * (per_prefill_ms * len(self.chunks) + per_decode_ms * steps))
        return self._problem(
            layer=[cost / generated for cost in layer],
            first=[cost / generated for cost in first],
            last=[cost / generated for cost in last],
            stage=[cost / generated for cost in stage],
            waiting=waiting,
            latencies=(len(self.chunks) + steps) / generated,
            hidden_states=(self.workload.prompt + steps) / generated,
            token_rows=1,
            sessions=self.workload.sessions,
        )

    def _problem(
        self,
        *,
        layer: Sequence[float],
        first: Sequence[float],
        last: Sequence[float],
        stage: Sequence[float],
        waiting: float,
        latencies: float,
        hidden_states: float,
        token_rows: int,
        sessions: int,
    ) -> Problem:
        """[K] costs of a layer, of embedding, head and stage; a hop's milliseconds cost `waiting` each."""
        count, layers = len(self.classes), self.spec.num_layers
        unit_cost = np.repeat(np.array(layer, dtype=np.float64)[:, None], layers, axis=1)
        unit_cost[:, 0] += first
        unit_cost[:, -1] += last
        parts = self.memory_parts(sessions)
        unit_bytes = np.full((count, layers), min(parts.layer, _MOST_BYTES), dtype=np.int64)
        unit_bytes[:, 0] += min(parts.first, _MOST_BYTES)
        unit_bytes[:, -1] += min(parts.last, _MOST_BYTES)
        # Within a class the link is that of its first two; between classes that of their firsts. All others are equal.
        members = [[self._place[name] for name in names] for names in self.classes]
        at = np.array([[a[1] if a is b and len(a) > 1 else b[0] for b in members] for a in members])
        firsts = np.array([[a[0]] for a in members])
        bandwidth = self._bandwidth[firsts, at]
        per_byte = np.full(bandwidth.shape, np.inf)
        np.divide(waiting * 1e3, bandwidth, out=per_byte, where=bandwidth > 0)
        back = [self.return_ms(names[0], token_rows) for names in self.classes]
        return Problem(
            counts=tuple(len(names) for names in self.classes),
            source=0,
            unit_cost=unit_cost,
            stage_cost=np.array(stage, dtype=np.float64),
            hop_cost=waiting * latencies * self._latency_ms[firsts, at],
            hop_cost_per_byte=per_byte,
            boundary_bytes=np.full(layers, hidden_states * self.hidden_bytes),
            return_cost=np.array([math.inf if math.isinf(ms) else waiting * ms for ms in back]),
            unit_bytes=unit_bytes,
            stage_bytes=np.full(count, min(parts.stage, _MOST_BYTES), dtype=np.int64),
            memory_bytes=np.array(
                [min(self.device(names[0]).memory_bytes, _MOST_BYTES) for names in self.classes], dtype=np.int64
            ),
            ends_at_source=self.privacy == "trusted-ends",
        )

    # --- what planners return -----------------------------------------------------------------------------------------

    def route(self, segments: Sequence[Segment], micro_batches: int = 1, rows: int = 1) -> Route:
        """Devices for classes: members in order of first use; a class of one device may come again (the source)."""
        return self.routes(segments, 1, micro_batches, rows)[0]

    def routes(self, segments: Sequence[Segment], copies: int, micro_batches: int, rows: int) -> tuple[Route, ...]:
        """The same for equal copies; no device is in two of them but the source."""
        used = [0] * len(self.classes)
        routes = []
        for _ in range(copies):
            stages = []
            for segment in segments:
                members = self.classes[segment.device_class]
                device = members[used[segment.device_class] % len(members)]
                used[segment.device_class] += 1
                stages.append(Stage(device, LayerRange(segment.start, segment.stop)))
            routes.append(Route(tuple(stages), micro_batches=micro_batches, rows=rows))
        return tuple(routes)

    def power(self, name: str) -> PowerProfile:
        """Raises BadProfile when the device has none."""
        device = self.device(name)
        if device.power is None:
            why = device.missing.get("power", "it was not measured")
            raise BadProfile(f"device {name}", f"no power: {why}; an energy plan needs it of every device")
        return device.power


def _check_weights(profile: ClusterProfile, workload: Workload) -> None:
    if profile.quantization != workload.quantization:
        raise BadProfile(
            "quantization", f"it was taken with {profile.quantization} weights, the plan is for {workload.quantization}"
        )
    if profile.quantization in ("int8", "int4") and profile.block_size != workload.block_size:
        raise BadProfile(
            "block_size", f"it was taken with blocks of {profile.block_size}, the plan is for {workload.block_size}"
        )
