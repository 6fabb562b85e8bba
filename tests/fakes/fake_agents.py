"""Agents in memory for the coordinator's state machine: they keep to docs/protocol.md and nothing else.

They answer at once when told to, and can vanish, restart and lose messages. No sockets, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.wire.messages import (
    PROTOCOL_VERSION,
    CancelSession,
    CloseMicroBatch,
    CoordinatorAlive,
    Failed,
    Hello,
    Load,
    Loaded,
    Message,
    MicroBatchClosed,
    MicroBatchOpened,
    OpenMicroBatch,
    OpenSession,
    ResumeEvents,
    Sampling,
    SessionEnded,
    SessionFailed,
    TokenEvent,
    Welcome,
    WorkerHello,
)
from edgectl.cluster import Cluster, Inbound
from edgectl.deploy import Order
from edgectl.effects import Deliver, Effect, Notice, Send
from edgectl.engine import EngineError
from edgectl.epochs import Epochs
from planner.types import Allotment, Device, LayerRange, Plan, Route, Stage

NAMES = ("a", "b", "c")
LAYERS = 6


def one_layer_pair_each(devices: Sequence[Device]) -> Plan:
    share = LAYERS // len(devices)
    stages = tuple(Stage(d.name, LayerRange(i * share, (i + 1) * share)) for i, d in enumerate(devices))
    return Plan(
        model="m",
        quantization="fp32",
        block_size=32,
        boundary="fp16",
        codec="fp16",
        context=64,
        routes=(Route(stages),),
        allotments=tuple(Allotment(s.device, (s.layers,), 1, 10, 100) for s in stages),
    )


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

    @property
    def origin(self) -> bytes:
        return f"{self.name}:{self.life}:{self.connection}".encode()

    @property
    def worker_origin(self) -> bytes:
        return f"{self.name}:{self.life}:{self.connection}:worker".encode()

    def hello(self, protocol: int = PROTOCOL_VERSION, name: str | None = None) -> Hello:
        endpoint = f"tcp://{self.name}:{self.life}"
        return Hello(protocol, name or self.name, "9.9.9", "boot", endpoint, 100, "cpu", worker=f"worker-{self.life}")


class Scene:
    """A cluster, its agents, and everything that was delivered to sessions."""

    def __init__(self) -> None:
        order = Order("m", "digest", one_layer_pair_each, NAMES, len(NAMES))
        self.cluster = Cluster([(name, f"key-{name}") for name in NAMES], order, Epochs(1), "1.0.0")
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

    def open(self, max_tokens: int = 3) -> str:
        self.opened += 1
        session = f"s{self.opened}"
        self.read[session] = []
        opening = OpenSession(session, 0, (1, 2), max_tokens, Sampling())
        try:
            self.take(self.cluster.open_session(opening, self.now))
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
                agent.loaded = message
                agent.micro_batches.clear()
                self.say(agent.name, Loaded("m", message.digest, 10, 0.1))
            case OpenMicroBatch():
                if agent.loaded is None:
                    failed = Failed("open-micro-batch", "agent_error", "nothing is loaded", message.micro_batch)
                    self.say(agent.name, failed)
                    return
                assert set(agent.micro_batches) <= {message.micro_batch}, "no slot is free"
                agent.micro_batches[message.micro_batch] = message
                agent.running.clear()
                self.epochs.append(message.epoch)
                self.say(agent.name, MicroBatchOpened(message.micro_batch, message.epoch))
            case CloseMicroBatch():
                agent.micro_batches.pop(message.micro_batch, None)
                self.say(agent.name, MicroBatchClosed(message.micro_batch))
            case OpenSession():
                assert message.micro_batch in agent.micro_batches
                assert not agent.running, "the row is taken"
                agent.running[message.session] = message
                agent.sessions[message.session] = []
            case CancelSession():
                if message.session in agent.running:
                    del agent.running[message.session]
                    tokens = len(agent.sessions[message.session])
                    self.emit(agent, SessionEnded(message.session, "cancelled", tokens))
            case ResumeEvents():
                if message.session not in agent.sessions:
                    self.say(agent.name, SessionFailed(message.session, "unknown_session", ""), worker=True)
                for event in agent.sessions.get(message.session, [])[message.index :]:
                    self.say(agent.name, event, worker=True)  # type: ignore[arg-type]
            case Welcome() | CoordinatorAlive():
                pass
            case _:
                raise AssertionError(f"{agent.name} was sent {message}")

    def emit(self, agent: Agent, event: TokenEvent | SessionEnded, *, lost: bool = False) -> None:
        agent.sessions[event.session].append(event)
        if not lost:
            self.say(agent.name, event, worker=True)

    def token(self, *, lost: bool = False) -> None:
        """The source makes one token for the session that runs, and ends it after max_tokens."""
        agent = self.agents["a"]
        session, opening = next(iter(agent.running.items()))
        index = len(agent.sessions[session])
        self.emit(agent, TokenEvent(session, index, 100 + index), lost=lost)
        if index + 1 == opening.max_tokens:
            del agent.running[session]
            self.emit(agent, SessionEnded(session, "length", index + 1), lost=lost)

    def ready(self) -> Scene:
        self.connect(*NAMES)
        self.settle()
        assert self.cluster.is_ready
        return self
