"""Devices in memory for `edgectl.profiling`, and profiles made of round numbers. No sockets, no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.wire.measure_messages import DeviceMeasured, LinkMeasured, MeasureDevice, MeasureLink
from agent.wire.message import Message
from agent.wire.messages import PROTOCOL_VERSION, Failed, Heartbeat, Hello
from edgectl.effects import Send
from edgectl.measurements import Settings, Task, settings_for
from edgectl.profiled_model import config_of
from edgectl.profiling import Began, Effect, Ended, Inbound, Profiling
from planner.profile import (
    ClusterProfile,
    DecodePoint,
    DeviceProfile,
    HeadPoint,
    LinkProfile,
    MemoryCheck,
    PowerProfile,
    PrefillPoint,
    Timing,
)
from tests.fakes.random_weights import SMALL

SPEC = replace(
    SMALL,
    num_layers=8,
    intermediate_size=128,
    vocab_size=256,
    max_positions=1024,
    rms_norm_eps=1e-6,
    sliding_windows=(None,) * 8,
)


def settings(*, device_s: float = 10.0) -> Settings:
    return settings_for(
        "m", json.dumps(config_of(SPEC)), SPEC, quantization="int4", block_size=32, quick=True, seconds=device_s
    )


def device_profile(name: str, *, layer_ms: float = 1.0, host: str = "", power: bool = True) -> DeviceProfile:
    """Decode `layer_ms` per layer and row, prefill a tenth of it per token."""
    return DeviceProfile(
        name=name,
        host=host or name,
        provider="cpu",
        memory_bytes=1 << 30,
        decode=tuple(
            DecodePoint(rows=rows, context=context, layer=Timing(ms=layer_ms * rows, p95_ms=layer_ms * rows, samples=9))
            for rows in (1, 2, 4)
            for context in (32, 512)
        ),
        prefill=tuple(PrefillPoint(tokens=n, layer=Timing(ms=layer_ms * n / 10, samples=9)) for n in (8, 32, 128)),
        head=tuple(HeadPoint(rows=rows, head=Timing(ms=0.5 * layer_ms * rows, samples=9)) for rows in (1, 2, 4)),
        embedding_ms=0.01,
        stage_ms=0.05,
        power=PowerProfile(
            idle_w=5.0, decode_w=20.0, prefill_w=30.0, source="tegrastats", joules_per_token_layer=0.02 * layer_ms
        )
        if power
        else None,
        memory=MemoryCheck(measured_bytes=1000, formula_bytes=1100),
        fingerprint={"board": "Jetson AGX Orin", "power_mode": "MAXN", "temperature_c": 41.5},
        missing={} if power else {"power": "no tegrastats on PATH"},
    )


def link_profile(source: str, destination: str, *, latency_ms: float = 0.25, mbit_s: float = 1000.0) -> LinkProfile:
    return LinkProfile(
        source=source,
        destination=destination,
        latency_ms=latency_ms,
        bandwidth_bytes_per_s=mbit_s * 1e6 / 8,
        rtt_p50_ms=2 * latency_ms,
        rtt_p95_ms=3 * latency_ms,
        jitter_ms=0.01,
    )


def cluster_profile(
    layer_ms: Mapping[str, float] | None = None, *, model: str = "m", created: str = "2026-11-21T12:00:00Z"
) -> ClusterProfile:
    """Devices with a time per layer each, and equal links between all of them."""
    speeds = layer_ms or {"a": 1.0, "b": 2.0}
    return ClusterProfile(
        model=model,
        spec=SPEC,
        quantization="int4",
        block_size=32,
        boundary="fp16",
        devices=tuple(device_profile(name, layer_ms=ms) for name, ms in speeds.items()),
        links=tuple(link_profile(a, b) for a in speeds for b in speeds if a != b),
        created=created,
        version="1.0.0",
    )


@dataclass
class Bench:
    """A Profiling and its devices, each on a host; requests are answered when a test says so."""

    hosts: Mapping[str, str]
    """Device → boot id."""
    wanted: Sequence[str] = ()
    known: Sequence[str] = ()
    wait_s: float = 10.0
    now: float = 0.0
    asked: list[tuple[str, MeasureDevice | MeasureLink]] = field(default_factory=list)
    """Requests that are not answered yet."""
    sent: list[Send] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    running: set[Task] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.profiling = Profiling(
            cluster=[(name, f"key-{name}") for name in self.hosts],
            wanted=self.wanted or tuple(self.hosts),
            settings=settings(),
            version="1.0.0",
            wait_s=self.wait_s,
            known=self.known,
        )

    def take(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append(effect)
                if isinstance(effect.message, (MeasureDevice, MeasureLink)):
                    self.asked.append((effect.origin.decode().partition(":")[0], effect.message))
            elif isinstance(effect, Began):
                self.running.add(effect.task)
            elif isinstance(effect, Ended):
                self.running.discard(effect.task)
        self.effects += effects
        return effects

    def say(self, name: str, message: Inbound, life: int = 0) -> list[Effect]:
        return self.take(self.profiling.on_message(f"{name}:{life}".encode(), name, message, self.now))

    def connect(self, *names: str, life: int = 0) -> None:
        for name in names or self.hosts:
            worker = f"worker-{life}"
            self.say(name, self.hello(name, worker), life)

    def hello(self, name: str, worker: str = "worker-0", protocol: int = PROTOCOL_VERSION) -> Hello:
        return Hello(protocol, name, "1.0.0", self.hosts[name], f"tcp://{name}:1", 1 << 30, "cpu", worker=worker)

    def tick(self, seconds: float, *alive: str) -> list[Effect]:
        """Time passes; the devices of `alive` send a heartbeat every second of it."""
        effects: list[Effect] = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            for name in alive:
                effects += self.say(name, Heartbeat(1))
            effects += self.take(self.profiling.on_tick(self.now))
        return effects

    def answer(self, number: int = 0) -> Message:
        """The device of the number-th open request answers it."""
        name, request = self.asked.pop(number)
        answer: DeviceMeasured | LinkMeasured
        if isinstance(request, MeasureDevice):
            answer = DeviceMeasured(request.request, device_profile("whatever-it-says", host="elsewhere"))
        else:
            answer = LinkMeasured(request.request, link_profile("x", "y"))
        self.say(name, answer)
        return answer

    def refuse(self, detail: str, number: int = 0) -> None:
        name, request = self.asked.pop(number)
        kind = "measure-device" if isinstance(request, MeasureDevice) else "measure-link"
        self.say(name, Failed(kind, "out_of_memory", f"{name}: {detail}"))

    def run(self) -> None:
        """Every request is answered as it comes."""
        while self.asked:
            self.answer()
