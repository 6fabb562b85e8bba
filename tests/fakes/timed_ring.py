"""Real stages on devices that take time, joined by links that take time: a pipeline event by event on its own clock.

`ring` is about order and faults, this about when: a device runs one job at a time, for as long as `pace` says, and
meanwhile frames arrive. The executor's tokens are exact, so a schedule that mixes anything up changes them.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from agent import step
from agent.compute.kernels import crc32c
from agent.device.telemetry import TelemetryRecorder
from agent.effects import Effect, Emit, Job, Notify, Outcome, Reply, Send
from agent.place import ModelShape
from agent.stage import Stage
from agent.wire import codec
from agent.wire.addresses import StageAddress
from agent.wire.codec import Frame, FrameKind
from agent.wire.messages import (
    Failed,
    MicroBatchOpened,
    OpenMicroBatch,
    OpenSession,
    SessionEnded,
    SessionFailed,
    TokenEvent,
)
from planner.types import LayerRange, Pipeline
from tests.fakes.fake_executor import HIDDEN, VOCABULARY, FakeExecutor, expected_tokens

Pace = Callable[[str, Job], float]
"""(device, job) → seconds."""
MOST_EVENTS = 500_000
TICK_S = 0.5


def even_pace(row_s: float = 0.0, token_s: float = 0.0, call_s: float = 0.0) -> Pace:
    """Every device alike: so long per call, per row of a decode step and per token of a chunk."""

    def pace(device: str, job: Job) -> float:
        return call_s + (row_s * len(job.positions) if job.kind is FrameKind.DECODE else token_s * job.shape[1])

    return pace


@dataclass
class Member:
    stage: Stage
    executor: FakeExecutor
    is_busy: bool = False


@dataclass
class Ran:
    device: str
    job: Job
    started_s: float
    ended_s: float


@dataclass
class TimedRing:
    """Devices "a", "b", … with `layers` each; micro-batches 0, 1, … all from "a" through every device."""

    devices: int
    pace: Pace
    latency_s: float = 0.0
    layers: int = 1
    slots: int = 64
    context: int = 64
    now: float = 0.0
    ran: list[Ran] = field(default_factory=list)
    opened: dict[str, OpenSession] = field(default_factory=dict)
    arrivals_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[str, SessionEnded | SessionFailed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.deliver = self._arrive
        """What becomes of a frame that has passed its link; a test may hold it back."""
        self.names = "abcdefgh"[: self.devices]
        self.members: dict[str, Member] = {}
        self.telemetry = {name: TelemetryRecorder() for name in self.names}
        for index, name in enumerate(self.names):
            layers = LayerRange(index * self.layers, (index + 1) * self.layers)
            shape = ModelShape(self.devices * self.layers, HIDDEN, self.slots, self.context, (layers,), VOCABULARY)
            executor = FakeExecutor(shape.num_layers, (layers,), slots=self.slots, context=self.context)
            self.members[name] = Member(Stage(name, shape, self.telemetry[name], 0.0), executor)

    def open_micro_batches(self, count: int, rows: int, *, chunk: int = 128, pipeline: Pipeline = "no-bubbles") -> None:
        stages = tuple(
            StageAddress(name, f"tcp://{name}:1", f"key-{name}", index * self.layers, (index + 1) * self.layers)
            for index, name in enumerate(self.names)
        )
        for number in range(count):
            for name in self.names:
                opening = OpenMicroBatch(number, 1, rows, chunk, "fp16", stages, pipeline=pipeline)
                self._perform(name, self.members[name].stage.open_micro_batch(opening))

    def open_session(self, opened: OpenSession) -> None:
        self.opened[opened.session] = opened
        self._perform("a", self.members["a"].stage.open_session(opened, self.now))

    def cancel(self, session: str) -> None:
        self._perform("a", self.members["a"].stage.cancel_session(session))

    # --- time ---

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Do something at that time."""
        self._number += 1
        heapq.heappush(self._agenda, (when_s, self._number, what))

    def play(self, until_s: float = float("inf")) -> None:
        """Let time pass until then, or until nothing happens any more."""
        for _ in range(MOST_EVENTS):
            self._start_jobs()
            if not self._agenda or self._agenda[0][0] > until_s:
                self.now = until_s if until_s < float("inf") else self.now
                return
            self.now, _, what = heapq.heappop(self._agenda)
            what()
            # Whatever happens at the same time has happened before anybody chooses what to run.
            while self._agenda and self._agenda[0][0] == self.now:
                heapq.heappop(self._agenda)[2]()
        raise AssertionError("never quiet")

    def play_with_ticks(self, until_s: float) -> None:
        """As workers do: deadlines are looked at twice a second, and the coordinator is heard."""
        while self.now < until_s:
            self.play(until_s=min(until_s, self.now + TICK_S))
            for name, member in self.members.items():
                member.stage.coordinator_heard(self.now)
                self._perform(name, member.stage.tick(self.now))

    def _start_jobs(self) -> None:
        for name, member in self.members.items():
            if member.is_busy:
                continue
            job = member.stage.next_job(self.now)
            if job is None:
                continue
            member.is_busy = True
            started_s, ended_s = self.now, self.now + self.pace(name, job)
            self.ran.append(Ran(name, job, started_s, ended_s))
            times = iter((started_s, ended_s))
            outcome = step.run(job, member.executor, times.__next__)
            self.at(ended_s, partial(self._end_job, name, job, outcome))

    def _end_job(self, name: str, job: Job, outcome: Outcome) -> None:
        self.members[name].is_busy = False
        self._perform(name, self.members[name].stage.on_computed(job, outcome, self.now))

    def _perform(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, frame):
                    self.at(self.now + self.latency_s, partial(self.deliver, name, peer, frame))
                case Emit(message):
                    self._hear(message)
                case Notify(MicroBatchOpened()):
                    pass
                case Reply(_, Frame(kind=FrameKind.PONG)):
                    pass
                case Reply(_, frame):
                    raise AssertionError(f"{name} refused: {codec.decode_refusal(frame.payload)}")
                case Notify(Failed() as failed):
                    raise AssertionError(f"{name}: {failed}")

    def _arrive(self, sender: str, receiver: str, frame: Frame) -> None:
        origin = f"{sender}>{receiver}".encode()
        parts = codec.encode(frame, crc32c)
        self._perform(receiver, self.members[receiver].stage.on_parts(origin, sender, parts, self.now))

    def _hear(self, message: object) -> None:
        match message:
            case TokenEvent(name, index, token):
                assert name not in self.ends
                assert index == len(self.tokens[name])
                self.tokens[name].append(token)
                self.arrivals_s[name].append(self.now)
            case SessionEnded(name) | SessionFailed(name):
                assert name not in self.ends
                self.ends[name] = message

    # --- what came of it ---

    def expected(self, name: str) -> list[int]:
        opened = self.opened[name]
        return expected_tokens(
            self.devices * self.layers,
            opened.prompt,
            opened.max_tokens,
            opened.sampling,
            stop_ids=opened.stop_ids,
            context=self.context,
        )

    def intervals_s(self, name: str) -> list[float]:
        """Between a session's tokens."""
        arrivals_s = self.arrivals_s[name]
        return [after - before for before, after in pairwise(arrivals_s)]

    def jobs_of(self, device: str) -> list[Job]:
        return [ran.job for ran in self.ran if ran.device == device]
