"""Agents in memory for the coordinator's state machine: they keep to docs/protocol.md and nothing else.

They answer at once when told to, and can vanish, restart and lose messages. No sockets, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from agent.wire.message import Message
from agent.wire.messages import (
    PROTOCOL_VERSION,
    CancelSession,
    CloseMicroBatch,
    CoordinatorAlive,
    Failed,
    Hello,
    Load,
    Loaded,
    MicroBatchClosed,
    MicroBatchOpened,
    MoveSplit,
    OpenMicroBatch,
    OpenSession,
    ResumeEvents,
    Sampling,
    SessionEnded,
    SessionFailed,
    SessionMoved,
    SplitKept,
    SplitMoved,
    TokenEvent,
    Welcome,
    WorkerHello,
)
from edgectl.cluster import Cluster, Inbound
from edgectl.cluster_settings import ClusterSettings
from edgectl.deploy import Order
from edgectl.effects import Deliver, Effect, Notice, Send
from edgectl.engine import ANYBODY, Claim, EngineError
from edgectl.epochs import Epochs
from edgectl.routes import slots_of
from planner.types import Allotment, Device, LayerRange, Plan, Route, Stage

NAMES = ("a", "b", "c")
LAYERS = 6


PlanFor = Callable[[Sequence[Device]], Plan]


def plan_of(*routes: Route) -> Plan:
    """A plan of these routes; every device keeps what its stages need."""
    resident: dict[str, dict[LayerRange, None]] = {}
    for route in routes:
        for stage in route.stages:
            resident.setdefault(stage.device, {})[stage.layers] = None
    plan = Plan(
        model="m",
        quantization="fp32",
        block_size=32,
        boundary="fp16",
        codec="fp16",
        context=64,
        routes=routes,
        allotments=(),
    )
    allotments = [Allotment(name, tuple(ranges), slots_of(plan, name), 10, 100) for name, ranges in resident.items()]
    return replace(plan, allotments=tuple(allotments))


def route_of(*devices: str, micro_batches: int = 1, rows: int = 1) -> Route:
    """Equal shares of the layers."""
    share = LAYERS // len(devices)
    stages = tuple(Stage(name, LayerRange(i * share, (i + 1) * share)) for i, name in enumerate(devices))
    return Route(stages, micro_batches, rows)


def one_layer_pair_each(devices: Sequence[Device]) -> Plan:
    return plan_of(route_of(*(device.name for device in devices)))


def rows_of(micro_batches: int, rows: int) -> PlanFor:
    """One route over all devices with as many micro-batches of as many rows."""

    def plan_for(devices: Sequence[Device]) -> Plan:
        names = [device.name for device in devices]
        return plan_of(route_of(*names, micro_batches=micro_batches, rows=rows))

    return plan_for


def two_routes(devices: Sequence[Device]) -> Plan:
    """By a and b, and by a and c: two micro-batches of two rows, and one of one."""
    return plan_of(route_of("a", "b", micro_batches=2, rows=2), route_of("a", "c"))


def two_sources(devices: Sequence[Device]) -> Plan:
    """By a and b, and by c alone: nothing is shared."""
    return plan_of(route_of("a", "b", rows=2), route_of("c", rows=2))


@dataclass
class Agent:
    """One device in memory: a supervisor connection, a worker connection, and what it holds."""

    name: str
    life: int = 0
    """Raised when the agent's processes start again."""
    connection: int = 0
    """Raised when only its connection broke."""
    loaded: Load | None = None
    micro_batches: dict[int, OpenMicroBatch] = field(default_factory=dict)
    sessions: dict[str, list[Message]] = field(default_factory=dict)
    """Events of each session that was opened here."""
    running: dict[str, OpenSession] = field(default_factory=dict)
    splits: dict[int, int] = field(default_factory=dict)
    """Where each micro-batch of which it is the source is split now."""
    moves: str = "carried out"
    """What becomes of moves: carried out, kept (refused), or silence."""

    @property
    def origin(self) -> bytes:
        return f"{self.name}:{self.life}:{self.connection}".encode()

    @property
    def worker_origin(self) -> bytes:
        return f"{self.name}:{self.life}:{self.connection}:worker".encode()

    def sessions_of(self, micro_batch: int) -> list[str]:
        return [session for session, opening in self.running.items() if opening.micro_batch == micro_batch]

    def close(self, micro_batch: int) -> None:
        """Its sessions end without a word to anybody."""
        self.micro_batches.pop(micro_batch, None)
        for session in self.sessions_of(micro_batch):
            del self.running[session]

    def hello(self, protocol: int = PROTOCOL_VERSION, name: str | None = None) -> Hello:
        endpoint = f"tcp://{self.name}:{self.life}"
        return Hello(protocol, name or self.name, "9.9.9", "boot", endpoint, 100, "cpu", worker=f"worker-{self.life}")


class Scene:
    """A cluster, its agents, and everything that was delivered to sessions."""

    def __init__(
        self,
        plan_for: PlanFor = one_layer_pair_each,
        settings: ClusterSettings | None = None,
        splits: tuple[int, ...] = (),
    ) -> None:
        order = Order("m", "digest", plan_for, NAMES, len(NAMES), splits=splits)
        self.cluster = Cluster([(name, f"key-{name}") for name in NAMES], order, Epochs(1), "1.0.0", settings)
        self.agents = {name: Agent(name) for name in NAMES}
        self.now = 0.0
        self.sent: list[Send] = []
        self.notices: list[Notice] = []
        self.read: dict[str, list[object]] = {}
        self.opened = 0
        self.epochs: list[int] = []

    def take(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append(effect)
            elif isinstance(effect, Deliver):
                self.read[effect.session].append(effect.event)
            elif isinstance(effect, Notice):
                self.notices.append(effect)
        return effects

    def say(self, name: str, message: Inbound, *, worker: bool = False) -> list[Effect]:
        agent = self.agents[name]
        origin = agent.worker_origin if worker else agent.origin
        return self.take(self.cluster.on_message(origin, name, message, self.now))

    def connect(self, *names: str) -> None:
        for name in names:
            self.say(name, WorkerHello(PROTOCOL_VERSION, name), worker=True)
            self.say(name, self.agents[name].hello())

    def open(self, max_tokens: int = 3, claim: Claim = ANYBODY) -> str:
        self.opened += 1
        session = f"s{self.opened}"
        self.read[session] = []
        opening = OpenSession(session, 0, (1, 2), max_tokens, Sampling())
        try:
            self.take(self.cluster.open_session(opening, self.now, claim))
        except EngineError:
            del self.read[session]
            raise
        return session

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.cluster.on_tick(self.now))

    def messages(self, name: str, kind: type) -> list[Message]:
        """What was sent to a device since the start, of one kind."""
        mine = (name.encode(), f"{name}:".encode())
        return [s.message for s in self.sent if s.origin.startswith(mine) and isinstance(s.message, kind)]

    def settle(self) -> None:
        """Every agent carries out and answers whatever was sent to it, until nothing more happens."""
        while self.sent:
            send = self.sent.pop(0)
            name, life, *_ = send.origin.decode().split(":")
            if self.agents[name].life == int(life):
                self.obey(self.agents[name], send.message)

    def obey(self, agent: Agent, message: Message) -> None:
        match message:
            case Load():
                if agent.loaded != message:
                    agent.micro_batches.clear()
                    agent.running.clear()
                agent.loaded = message
                self.say(agent.name, Loaded("m", message.digest, 10, 0.1))
            case OpenMicroBatch():
                self.open_micro_batch(agent, message)
            case CloseMicroBatch():
                agent.close(message.micro_batch)
                self.say(agent.name, MicroBatchClosed(message.micro_batch))
            case OpenSession():
                self.open_session(agent, message)
            case CancelSession():
                if message.session in agent.running:
                    del agent.running[message.session]
                    tokens = len(agent.sessions[message.session])
                    self.emit(agent, SessionEnded(message.session, "cancelled", tokens))
            case MoveSplit():
                self.move_split(agent, message)
            case ResumeEvents():
                if message.session not in agent.sessions:
                    self.say(agent.name, SessionFailed(message.session, "unknown_session", ""), worker=True)
                for event in agent.sessions.get(message.session, [])[message.index :]:
                    self.say(agent.name, event, worker=True)  # type: ignore[arg-type]
            case _:
                assert isinstance(message, (Welcome, CoordinatorAlive)), f"{agent.name} was sent {message}"

    def open_session(self, agent: Agent, message: OpenSession) -> None:
        opened = agent.micro_batches.get(message.micro_batch)
        if opened is None:
            failed = SessionFailed(message.session, "unknown_micro_batch", f"micro-batch {message.micro_batch}")
            self.say(agent.name, failed, worker=True)
            return
        assert opened.stages[0].device == agent.name, "not the source"
        assert len(agent.sessions_of(message.micro_batch)) < opened.rows, "every row is taken"
        agent.running[message.session] = message
        agent.sessions[message.session] = []
        if opened.split_points:
            self.say(agent.name, SessionMoved(message.session, 0, agent.splits[message.micro_batch]), worker=True)

    def open_micro_batch(self, agent: Agent, message: OpenMicroBatch) -> None:
        if agent.loaded is None:
            failed = Failed("open-micro-batch", "agent_error", "nothing is loaded", message.micro_batch)
            self.say(agent.name, failed)
            return
        agent.close(message.micro_batch)
        taken = sum(each.rows for each in agent.micro_batches.values())
        assert taken + message.rows <= agent.loaded.slots, "no slot is free"
        agent.micro_batches[message.micro_batch] = message
        agent.splits[message.micro_batch] = message.stages[0].stop
        self.epochs.append(message.epoch)
        self.say(agent.name, MicroBatchOpened(message.micro_batch, message.epoch))

    def move_split(self, agent: Agent, message: MoveSplit) -> None:
        """Sessions that run change at their next position."""
        number = message.micro_batch
        if agent.moves == "silence":
            return
        if agent.moves == "kept" or number not in agent.micro_batches:
            kept = SplitKept(number, message.split, "answer_timeout", f"{agent.name}: nobody answered")
            self.say(agent.name, kept, worker=True)
            return
        assert message.split in agent.micro_batches[number].split_points, "moved to where nothing is resident"
        is_new = agent.splits[number] != message.split
        agent.splits[number] = message.split
        for session in agent.sessions_of(number) if is_new else ():
            position = len(agent.running[session].prompt) + len(agent.sessions[session])
            self.say(agent.name, SessionMoved(session, position, message.split), worker=True)
        self.say(agent.name, SplitMoved(number, message.split, 4096 if is_new else 0, 0.01), worker=True)

    def emit(self, agent: Agent, event: TokenEvent | SessionEnded, *, lost: bool = False) -> None:
        agent.sessions[event.session].append(event)
        if not lost:
            self.say(agent.name, event, worker=True)

    def token(self, session: str | None = None, *, lost: bool = False) -> None:
        """A source makes one token for a session that runs, the first where none is named; max_tokens end it."""
        running = {name: agent for agent in self.agents.values() for name in agent.running}
        session = session or next(iter(running))
        agent = running[session]
        opening = agent.running[session]
        index = len(agent.sessions[session])
        self.emit(agent, TokenEvent(session, index, 100 + index), lost=lost)
        if index + 1 == opening.max_tokens:
            del agent.running[session]
            self.emit(agent, SessionEnded(session, "length", index + 1), lost=lost)

    def route_of(self, session: str) -> tuple[str, ...]:
        """The devices of the route that a running session is on."""
        agent = next(agent for agent in self.agents.values() if session in agent.running)
        opened = agent.micro_batches[agent.running[session].micro_batch]
        return tuple(stage.device for stage in opened.stages)

    def ready(self) -> Scene:
        self.connect(*NAMES)
        self.settle()
        assert self.cluster.is_ready
        return self
