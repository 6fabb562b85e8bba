"""Devices in memory for `edgectl.quality.spread`: they answer with numbers that say what was asked. No sockets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.wire.measure_messages import MeasureQuality, QualityMeasured
from agent.wire.messages import PROTOCOL_VERSION, Heartbeat, Hello
from edgectl.effects import Notice, Send
from edgectl.quality.points import QualityPoint, grid
from edgectl.quality.spread import Effect, Finished, Inbound, Measured, QualitySpread, Unit, units_of
from planner.channel import erasing

POINTS = grid((1, 4, 31), (0.1, 0.2))
RUNS = [(point, run) for point in POINTS for run in range(3)]


def perplexity_at(point: QualityPoint, run: int) -> float:
    return 40.0 + point.split + 10 * point.loss + run


def request_for(number: int, unit: Unit) -> MeasureQuality:
    channels = tuple(erasing(point.loss, run) for point, run in unit.runs)
    return MeasureQuality(number, "m", "d", 32, "fp32", 32, "fp16", "fp16", 4, (1, 2, 3, 4), unit.split, channels)


def answer_to(request: MeasureQuality, index: int) -> QualityMeasured:
    """What a device measures over one of the channels."""
    (state,), run = request.channels[index].states, request.channels[index].seed
    return QualityMeasured(request.request, index, perplexity_at(QualityPoint(request.split, state.loss), run))


def hello(name: str, life: int = 0, protocol: int = PROTOCOL_VERSION) -> Hello:
    return Hello(protocol, name, "1.0.0", name, "tcp://h:1", 1 << 30, "cpu", worker=f"worker-{life}")


@dataclass
class Bench:
    """The core, its devices, and what it was told to do; requests are answered when a test says so."""

    devices: Sequence[str] = ("a", "b")
    most_runs: int = 64
    wait_s: float = 10.0
    now: float = 0.0
    asked: dict[str, tuple[MeasureQuality, int]] = field(default_factory=dict)
    """Device → its open request, and how much of it is answered."""
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spread = QualitySpread(
            [(name, f"key-{name}") for name in self.devices],
            units_of(RUNS, self.most_runs),
            request_for,
            "1.0.0",
            wait_s=self.wait_s,
        )

    def take(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, MeasureQuality):
                name = effect.origin.decode().partition(":")[0]
                assert name not in self.asked or self.asked[name][1] < 0, "one at a time"
                self.asked[name] = (effect.message, 0)
        self.effects += effects
        return effects

    def say(self, name: str, message: Inbound, life: int = 0) -> list[Effect]:
        return self.take(self.spread.on_message(f"{name}:{life}".encode(), name, message, self.now))

    def connect(self, *names: str, life: int = 0) -> None:
        for name in names or self.devices:
            if life:
                self.asked.pop(name, None)
            self.say(name, hello(name, life), life)

    def answer(self, name: str, count: int = 1, life: int = 0) -> None:
        for _ in range(count):
            request, index = self.asked.pop(name)
            answer = answer_to(request, index)
            if index + 1 < len(request.channels):
                self.asked[name] = (request, index + 1)
            self.say(name, answer, life)

    def tick(self, seconds: float, *alive: str) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            for name in alive:
                self.say(name, Heartbeat(1))
            self.take(self.spread.on_tick(self.now))

    def run(self) -> None:
        while self.asked:
            for name in list(self.asked):
                self.answer(name)

    def lose_the_silent(self) -> None:
        """A tick; what devices that are lost by it were asked is not answered."""
        before = {each.name for each in self.spread._table if each.is_present}
        self.take(self.spread.on_tick(self.now))
        for each in self.spread._table:
            if each.name in before and not each.is_present:
                self.asked.pop(each.name, None)

    @property
    def measured(self) -> list[Measured]:
        return [effect for effect in self.effects if isinstance(effect, Measured)]

    def check_complete(self) -> None:
        """Every run once, each with its own number, and an end."""
        found = [(each.measurement.point, each.measurement.run) for each in self.measured]
        assert sorted(found) == sorted(RUNS)
        assert all(
            each.measurement.perplexity == perplexity_at(each.measurement.point, each.measurement.run)
            for each in self.measured
        )
        assert self.spread.is_finished
        assert self.spread.left == 0
        assert sum(isinstance(effect, Finished) for effect in self.effects) == 1

    def notices(self) -> str:
        return "\n".join(effect.detail for effect in self.effects if isinstance(effect, Notice))
