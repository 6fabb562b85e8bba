"""Real stages in one process, connected by links that break: no sockets, no model, no clock but `now`.

A link behaves like a TCP connection: in order, and when it drops, what was under way is lost in both directions.
Faults that TCP does not have (a lost, repeated or changed frame) are there for tests to ask for. Nothing happens by
itself: `actions` says what could happen next, `perform` does one of them, `settle` does all of them in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from agent import handing, step
from agent.compute.kernels import crc32c
from agent.device.telemetry import TelemetryRecorder
from agent.effects import Connect, Disconnect, Effect, Emit, Job, Notify, Reply, Send
from agent.place import NOTHING_LOADED, ModelShape
from agent.stage import Stage
from agent.wire import codec
from agent.wire.addresses import StageAddress
from agent.wire.codec import Buffer, Frame, FrameKind
from agent.wire.messages import (
    FromAgent,
    FromSource,
    OpenMicroBatch,
    OpenSession,
    Sampling,
    SessionEnded,
    SessionFailed,
    TokenEvent,
)
from planner.channel import Channel
from planner.types import Codec, LayerRange, Pipeline
from tests.fakes.fake_executor import HIDDEN, VOCABULARY, FakeExecutor, expected_tokens

RUN_S = 0.01
TICK_S = 0.5
MOST_ACTIONS = 100_000


@dataclass
class Member:
    """One device: what a worker holds, without its sockets."""

    name: str
    layers: LayerRange
    resident: LayerRange
    telemetry: TelemetryRecorder
    stage: Stage
    executor: FakeExecutor


@dataclass
class Link:
    """A device's connection to the next one: frames go forth, refusals and pongs come back."""

    state: Literal["cut", "dialling", "up"] = "dialling"
    number: int = 0
    """Unique to the present connection; part of the origin that the receiver replies to."""
    frames: deque[list[Buffer]] = field(default_factory=deque)
    replies: deque[list[Buffer]] = field(default_factory=deque)


class Action(NamedTuple):
    kind: Literal["connect", "frame", "reply", "run"]
    device: str
    peer: str = ""


@dataclass(frozen=True)
class Ran:
    """A job that a device has begun."""

    job: Job


class Performed(NamedTuple):
    """An effect of a stage, or a job that it ran; `left` is False for a message that found no connection."""

    device: str
    effect: Effect | Ran
    left: bool


class Ring:
    """Devices, links and everything that the stages told the coordinator."""

    def __init__(self, num_layers: int, *, slots: int = 4, context: int = 64, pings: bool = True) -> None:
        self.num_layers = num_layers
        self.slots = slots
        self.context = context
        self.pings = pings
        self.now = 0.0
        self.members: dict[str, Member] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self.events: list[FromSource] = []
        self.notices: list[tuple[str, FromAgent]] = []
        self.journal: list[Performed] = []
        self.coordinator_is_silent = False
        self._connections = 0

    # --- devices and what the coordinator asks of them ---

    def add_device(
        self, name: str, layers: LayerRange, *, loaded: bool = True, resident: LayerRange | None = None
    ) -> None:
        """`layers` are its own on every route; it may have more (`resident`), for split points that move."""
        has = resident or layers
        telemetry = TelemetryRecorder()
        shape = NOTHING_LOADED
        if loaded:
            shape = ModelShape(self.num_layers, HIDDEN, self.slots, self.context, (has,), VOCABULARY, 2 * HIDDEN)
        stage = Stage(name, shape, telemetry, self.now)
        executor = FakeExecutor(self.num_layers, (has,), slots=self.slots, context=self.context)
        self.members[name] = Member(name, layers, has, telemetry, stage, executor)

    def restart(self, name: str, *, loaded: bool = True) -> None:
        """The worker died and a new one has loaded its layers: nothing is open, every connection is gone."""
        self.add_device(name, self.members[name].layers, loaded=loaded, resident=self.members[name].resident)
        for device, peer in list(self.links):
            if device == name:
                del self.links[device, peer]
            elif peer == name and self.links[device, peer].state == "up":
                self._lose(self.links[device, peer], "dialling")

    def open_micro_batch(
        self,
        number: int,
        epoch: int,
        route: Sequence[str],
        *,
        rows: int = 1,
        chunk: int = 4,
        wire: Codec = "fp16",
        pipeline: Pipeline = "no-bubbles",
        split_points: tuple[int, ...] = (),
        channel: Channel | None = None,
    ) -> None:
        """`channel` is that of the link behind the source."""
        stages = tuple(
            StageAddress(
                name,
                f"tcp://{name}:1",
                f"key-{name}",
                self.members[name].layers.start,
                self.members[name].layers.stop,
                channel if index == 1 else None,
            )
            for index, name in enumerate(route)
        )
        opening = OpenMicroBatch(number, epoch, rows, chunk, wire, stages, pipeline, split_points)
        for name in route:
            self.perform_effects(name, self.members[name].stage.open_micro_batch(opening))

    def move_split(self, source: str, number: int, split: int) -> None:
        self.perform_effects(source, self.members[source].stage.move_split(number, split, self.now))

    def close_micro_batch(self, number: int) -> None:
        for name, member in self.members.items():
            self.perform_effects(name, member.stage.close_micro_batch(number))

    def open_session(self, source: str, opened: OpenSession) -> None:
        self.perform_effects(source, self.members[source].stage.open_session(opened, self.now))

    def cancel(self, source: str, session: str) -> None:
        self.perform_effects(source, self.members[source].stage.cancel_session(session))

    def resume(self, source: str, session: str, index: int) -> None:
        self.perform_effects(source, self.members[source].stage.resume_events(session, index))

    def tick(self, seconds: float) -> None:
        """Let time pass as a worker does, in small steps; the coordinator is heard unless it is silent."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + TICK_S)
            for name, member in self.members.items():
                if not self.coordinator_is_silent:
                    member.stage.coordinator_heard(self.now)
                self.perform_effects(name, member.stage.tick(self.now))

    # --- what can happen next ---

    def actions(self) -> list[Action]:
        """Everything that could happen now, in a fixed order."""
        possible = [Action("run", name) for name, member in self.members.items() if member.stage.has_job(self.now)]
        for (device, peer), link in sorted(self.links.items()):
            if link.state == "dialling" and peer in self.members:
                possible.append(Action("connect", device, peer))
            if link.frames:
                possible.append(Action("frame", device, peer))
            if link.replies:
                possible.append(Action("reply", device, peer))
        return possible

    def perform(self, action: Action) -> None:
        match action:
            case Action("run", name):
                self._run(self.members[name])
            case Action("connect", device, peer):
                link = self.links[device, peer]
                self._connections += 1
                link.state, link.number = "up", self._connections
                self.perform_effects(device, self.members[device].stage.on_connected(peer))
            case Action("frame", device, peer):
                parts = self.links[device, peer].frames.popleft()
                self.hand_over(device, peer, parts)
            case Action("reply", device, peer):
                parts = self.links[device, peer].replies.popleft()
                self.perform_effects(device, self.members[device].stage.on_replied(peer, parts, self.now))

    def settle(self) -> None:
        """Do everything that can happen, each possible thing once per round, until nothing can."""
        for _ in range(MOST_ACTIONS):
            round_ = self.actions()
            if not round_:
                return
            for action in round_:
                if action in self.actions():
                    self.perform(action)
        raise AssertionError(f"never quiet: {self.actions()}")

    def hand_over(self, device: str, peer: str, parts: list[Buffer], *, claiming: str = "") -> None:
        """Deliver a message from `device` to `peer`, whose key says that it is of `claiming`."""
        origin = self._origin(device, peer)
        effects = self.members[peer].stage.on_parts(origin, claiming or device, parts, self.now)
        self.perform_effects(peer, effects)

    def _origin(self, device: str, peer: str) -> bytes:
        link = self.links.get((device, peer))
        return f"{device}>{peer}#{link.number if link else 0}".encode()

    def _run(self, member: Member) -> None:
        job = member.stage.next_job(self.now)
        assert job is not None
        self.journal.append(Performed(member.name, Ran(job), True))
        self.now += RUN_S
        try:
            run = step.run if job.hands is None else handing.run
            outcome = run(job, member.executor, lambda: self.now)
        except ValueError as problem:
            self.perform_effects(member.name, member.stage.on_compute_failed(job, problem))
            return
        self.perform_effects(member.name, member.stage.on_computed(job, outcome, self.now))

    # --- faults ---

    def drop(self, device: str, peer: str) -> None:
        """The connection breaks and stays broken; what is under way is lost both ways."""
        self._lose(self.links[device, peer], "cut")

    def reconnect(self, device: str, peer: str) -> None:
        """Let a dropped connection be dialled again; the connect action completes it."""
        if self.links[device, peer].state == "cut":
            self.links[device, peer].state = "dialling"

    def reconnect_all(self) -> None:
        for device, peer in self.links:
            self.reconnect(device, peer)

    def lose_frame(self, device: str, peer: str) -> None:
        self.links[device, peer].frames.popleft()

    def duplicate_frame(self, device: str, peer: str) -> None:
        """The first frame under way arrives once more, after everything else that is under way."""
        frames = self.links[device, peer].frames
        frames.append(frames[0])

    def corrupt_frame(self, device: str, peer: str) -> None:
        """Flip one bit of the first frame's payload, or of its header when it has none."""
        parts = self.links[device, peer].frames[0]
        index = 1 if len(parts[1]) else 0
        changed = bytearray(parts[index])
        changed[len(changed) // 2] ^= 0x10
        parts[index] = bytes(changed)

    def edit_frame(self, device: str, peer: str, **fields: object) -> None:
        """Change fields of the first frame under way, checksum and all: what a peer with a bug would send."""
        frames = self.links[device, peer].frames
        frame = msgspec.structs.replace(codec.decode(frames[0], crc32c), **fields)  # type: ignore[arg-type]
        frames[0] = codec.encode(frame, crc32c)

    def first_frame(self, device: str, peer: str) -> Frame:
        return codec.decode(self.links[device, peer].frames[0], crc32c)

    @staticmethod
    def _lose(link: Link, state: Literal["cut", "dialling"]) -> None:
        link.state = state
        link.frames.clear()
        link.replies.clear()

    # --- effects ---

    def perform_effects(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            left = True
            match effect:
                case Send(peer, frame):
                    left = self._send(name, peer, frame)
                case Reply(origin, frame):
                    left = self._reply(origin, frame)
                case Emit(message):
                    self.events.append(message)
                case Notify(message):
                    self.notices.append((name, message))
                case Connect(peer, _, _):
                    self.links[name, peer] = Link()
                case Disconnect(peer):
                    del self.links[name, peer]
            if self.pings or not (isinstance(effect, Send) and effect.frame.kind is FrameKind.PING):
                self.journal.append(Performed(name, effect, left))

    def _send(self, name: str, peer: str, frame: Frame) -> bool:
        link = self.links[name, peer]
        if link.state != "up" or (frame.kind is FrameKind.PING and not self.pings):
            return False
        link.frames.append(codec.encode(frame, crc32c))
        return True

    def _reply(self, origin: bytes, frame: Frame) -> bool:
        ends, number = origin.decode().split("#")
        device, peer = ends.split(">")
        link = self.links.get((device, peer))
        if link is None or link.state != "up" or link.number != int(number):
            return False
        link.replies.append(codec.encode(frame, crc32c))
        return True

    # --- what came of it ---

    def of_session(self, session: str) -> list[FromSource]:
        return [event for event in self.events if getattr(event, "session", None) == session]

    def tokens(self, session: str, first: int = 0) -> list[int]:
        """Its tokens in order of arrival. Every index came once and in order, and its end came once and last."""
        events = self.of_session(session)
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        assert [token.index for token in tokens] == list(range(first, first + len(tokens))), session
        ends = [event for event in events if isinstance(event, (SessionEnded, SessionFailed))]
        assert len(ends) <= 1, f"{session} ended {len(ends)} times: {ends}"
        assert not ends or events[-1] is ends[0], f"{session}: events after its end"
        return [token.token for token in tokens]

    def end_of(self, session: str) -> SessionEnded | SessionFailed | None:
        ends = [event for event in self.of_session(session) if isinstance(event, (SessionEnded, SessionFailed))]
        return ends[-1] if ends else None

    def expected(self, opened: OpenSession) -> list[int]:
        """The oracle's tokens for a session."""
        return expected_tokens(
            self.num_layers,
            opened.prompt,
            opened.max_tokens,
            opened.sampling,
            stop_ids=opened.stop_ids,
            context=self.context,
        )

    def counters(self, name: str) -> dict[str, int]:
        return dict(self.members[name].telemetry.snapshot().counters)

    def frames_under_way(self, device: str, peer: str) -> list[Frame]:
        return [codec.decode(parts, crc32c) for parts in self.links[device, peer].frames]


def three_stages(*, rows: int = 1, chunk: int = 4, slots: int = 4, context: int = 64, wire: Codec = "fp16") -> Ring:
    """Layers [0, 2), [2, 4) and [4, 6) on a, b and c, micro-batch 1 open in epoch 1 and every link up."""
    ring = Ring(6, slots=slots, context=context)
    for index, name in enumerate("abc"):
        ring.add_device(name, LayerRange(2 * index, 2 * index + 2))
    ring.open_micro_batch(1, 1, "abc", rows=rows, chunk=chunk, wire=wire)
    ring.settle()
    return ring


def session(
    name: str,
    prompt: Sequence[int],
    max_tokens: int = 5,
    *,
    micro_batch: int = 1,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    emitted: Sequence[int] = (),
    patience_s: float = 0.0,
) -> OpenSession:
    """An OpenSession with greedy sampling unless said otherwise."""
    chosen = sampling if sampling is not None else Sampling(temperature=0.0)
    return OpenSession(
        name, micro_batch, tuple(prompt), max_tokens, chosen, tuple(stop_ids), tuple(emitted), patience_s
    )
