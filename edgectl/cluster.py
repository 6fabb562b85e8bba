"""The coordinator's state machine: messages, ticks and sessions in, effects out. Pure.

Rules
1. Whoever sends a message is known by its key: `device` comes from the transport. A Hello that claims another is
   refused.
2. A supervisor's first message is Hello, a worker's is WorkerHello, again after every reconnect. What comes on another
   connection is not used; where a second agent has a device's key, the one that came first is told so.
3. Sessions live on one route. When a device of that route is lost or restarts, they fail with an error that names it.
4. No sockets, no clock: `now` is seconds of a monotonic clock, everything to be done is returned as effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

from typing_extensions import assert_never

from agent.wire.messages import (
    PROTOCOL_VERSION,
    CoordinatorAlive,
    DeviceMeasured,
    DeviceMessage,
    Failed,
    FromAgent,
    FromSource,
    Heartbeat,
    Hello,
    LinkMeasured,
    Loaded,
    LoadProgress,
    MeasureProgress,
    MicroBatchClosed,
    MicroBatchOpened,
    OpenSession,
    Rejected,
    SessionEnded,
    SessionFailed,
    Telemetry,
    TokenEvent,
    Welcome,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.admission import displaced, refusal
from edgectl.deploy import Deployment, Order, Phase, naming
from edgectl.devices import DeviceEvent, DeviceTable
from edgectl.effects import Effect, Loading, Notice, Ready, Send, SendSource
from edgectl.engine import EngineError, Health
from edgectl.epochs import Epochs
from edgectl.sessions import SessionTable

Inbound = Union[FromAgent, FromSource]

ALIVE_INTERVAL_S = 1.0
"""How often a source's worker hears from the coordinator: thirty times within COORDINATOR_SILENCE_S."""

BREAKING_CODES = frozenset({"answer_timeout", "frame_refused", "unknown_micro_batch"})
"""Failures of a session after which its micro-batch serves no other: the next one opens under a new epoch."""


class Cluster:
    """Devices, the deployment on them, and the sessions on the deployment."""

    def __init__(self, devices: Sequence[tuple[str, str]], order: Order, epochs: Epochs, version: str) -> None:
        self.devices = DeviceTable(devices)
        self.deployment = Deployment(order, self.devices, epochs)
        self.sessions = SessionTable()
        self._version = version
        self._alive_sent = float("-inf")
        self._unannounced: Ready | None = None
        """A plan that runs, but whose source's worker has not connected yet: it may be later than its supervisor."""

    @property
    def is_ready(self) -> bool:
        """Whether a session opened now would start."""
        source = self.deployment.source
        return self.deployment.phase is Phase.READY and source is not None and source.worker_origin is not None

    def on_message(self, origin: bytes, device: str, message: Inbound, now: float) -> list[Effect]:
        """One decoded message of the connection `origin`, whose key belongs to `device`."""
        if device not in self.devices:
            return [Send(origin, Rejected("not_authorized", f"{device} is not among the devices of cluster.toml"))]
        if isinstance(message, (Hello, WorkerHello)):
            effects = self._on_first(origin, device, message, now)
        elif isinstance(message, (TokenEvent, SessionEnded, SessionFailed)):
            effects = self._on_session_event(origin, device, message, now)
        elif origin != self.devices[device].origin:
            effects = self._on_stranger(origin, device)
        else:
            effects = self._on_device_message(device, message, now)
        return self._resolve([*effects, *self._proceed(now)])

    def on_tick(self, now: float) -> list[Effect]:
        """To be called several times a second."""
        effects: list[Effect] = []
        for record in self.devices.silent(now):
            effects.append(Notice("warning", f"{record.name} is lost: no heartbeat for {now - record.heard:.1f} s"))
            if self.deployment.uses(record.name):
                effects += self._lose("device_lost", f"device {record.name} is lost")
                effects += self.deployment.start_over()
        effects += self.sessions.on_tick(now)
        if now - self._alive_sent >= ALIVE_INTERVAL_S:
            self._alive_sent = now
            workers = [record.worker_origin for record in self.devices if record.worker_origin is not None]
            effects += [Send(origin, CoordinatorAlive()) for origin in workers]
        return self._resolve([*effects, *self._proceed(now)])

    def open_session(self, opening: OpenSession, now: float) -> list[Effect]:
        """Queues a session. Raises EngineError: `no_agent`, `not_ready`, `queue_full`, or why the plan was refused."""
        if not self.is_ready:
            raise EngineError(self._why_not(), self.health().detail)
        self.sessions.open(opening)
        return self._resolve(self._proceed(now))

    def cancel(self, session: str, now: float) -> list[Effect]:
        """Ends a session for its reader at once. Unknown and ended ones are ignored."""
        return self._resolve([*self.sessions.cancel(session, now), *self._proceed(now)])

    def shut_down(self, now: float) -> list[Effect]:
        """Cancels every session and closes the micro-batch; the devices keep their layers."""
        effects = self._resolve(self.sessions.cancel_all(now))
        return [*effects, *self.deployment.close()]

    def health(self) -> Health:
        """Whether a session opened now would run, and if not, why."""
        deployment = self.deployment
        missing = deployment.missing()
        expected = len(deployment.order.devices)
        if self.is_ready:
            detail = "ready"
        elif deployment.phase is Phase.REFUSED:
            detail = deployment.detail
        elif deployment.phase is Phase.WAITING:
            problems = [f"{name} ({self.devices[name].problem})" for name in missing if self.devices[name].problem]
            waited = ", ".join(problems or missing)
            detail = f"waiting for {waited}" if missing else "planning"
        else:
            detail = "the devices load their layers" if deployment.phase is Phase.LOADING else "opening the route"
        return Health(self.is_ready, expected - len(missing), expected, detail)

    def telemetry(self) -> Mapping[str, Telemetry]:
        """Last telemetry of each connected device."""
        return {record.name: record.heartbeat.telemetry for record in self.devices if record.heartbeat is not None}

    def _on_first(self, origin: bytes, device: str, message: Hello | WorkerHello, now: float) -> list[Effect]:
        record = self.devices[device]
        refused = refusal(device, message, self._version)
        if refused is not None:
            record.problem = f"{refused.code}: {refused.detail}"
            return [Send(origin, refused), Notice("error", f"{device} was refused: {refused.detail}")]
        if isinstance(message, WorkerHello):
            record.worker_origin = origin
            resumed = self.sessions.resume(now) if self._is_source(device) else []
            return [Send(origin, CoordinatorAlive()), *resumed]
        welcome = Welcome(PROTOCOL_VERSION, self._version, self.devices.peers_of(device))
        if self.is_ready and record.is_present and record.is_same_worker(message.worker):
            self.devices.reconnected(origin, message, device, now)
            return [Send(origin, welcome), Notice("info", f"{device} reconnected")]
        lost = self._lose("device_lost", f"device {device} started again") if self.deployment.uses(device) else []
        self.devices.hello(origin, message, device, now)
        connected = Notice("info", f"{device} connected")
        return [Send(origin, welcome), connected, *lost, *self.deployment.on_arrival(device, now)]

    def _on_stranger(self, origin: bytes, device: str) -> list[Effect]:
        """A supervisor that has not said Hello yet, or whose device a newer connection has taken over."""
        if not self.devices[device].is_present:
            return []
        return [Send(origin, displaced(device))]

    def _on_session_event(
        self, origin: bytes, device: str, event: TokenEvent | SessionEnded | SessionFailed, now: float
    ) -> list[Effect]:
        if origin != self.devices[device].worker_origin or not self._is_source(device):
            return []  # From a worker that is gone, or under way when the route moved to another source.
        if isinstance(event, TokenEvent):
            self.deployment.on_progress()
            return self.sessions.on_token(event, now)
        if isinstance(event, SessionEnded):
            return self.sessions.on_ended(event, now)
        effects = self.sessions.on_failed(event)
        if effects and event.code in BREAKING_CODES:
            effects += self._break(device, self.deployment.micro_batch, event.code, event.detail)
        return effects

    def _on_device_message(
        self,
        device: str,
        message: DeviceMessage,
        now: float,
    ) -> list[Effect]:
        record = self.devices[device]
        record.heard = now
        if record.apply(DeviceEvent.HEARD):
            return [Notice("info", f"{device} is back"), *self.deployment.on_arrival(device, now)]
        if isinstance(message, Heartbeat):
            record.heartbeat = message
            return []
        if isinstance(message, LoadProgress):
            return [Loading(device, message.layers_done, message.layers_total)]
        if isinstance(message, Loaded):
            return self._on_loaded(device, message)
        if isinstance(message, MicroBatchOpened):
            return self.deployment.on_opened(device, message)
        if isinstance(message, (MicroBatchClosed, MeasureProgress, DeviceMeasured, LinkMeasured)):
            return []  # Measurements are `edgectl profile`'s; they may come late, from one that was stopped.
        if isinstance(message, Failed):
            return self._on_failed(device, message)
        if isinstance(message, WorkerRestarted):
            return self._on_worker_restarted(device, message, now)
        assert_never(message)

    def _on_loaded(self, device: str, message: Loaded) -> list[Effect]:
        record = self.devices[device]
        if record.load is None or (message.model, message.digest) != (record.load.model, record.load.digest):
            return []  # The answer to a Load from before a restart of ours.
        record.loaded_bytes = message.memory_bytes
        record.apply(DeviceEvent.LOADED)
        if message.batch_invariant:
            return []
        return [Notice("warning", f"{device}: results depend on chunk sizes, so tokens may differ between runs")]

    def _on_failed(self, device: str, failed: Failed) -> list[Effect]:
        if failed.request != "micro-batch":
            return self.deployment.on_failed(device, failed)
        return self._break(device, failed.micro_batch, failed.code, failed.detail)

    def _break(self, device: str, micro_batch: int, code: str, detail: str) -> list[Effect]:
        is_current = micro_batch == self.deployment.micro_batch
        failed = self.sessions.fail_running(code, naming(device, detail)) if is_current else []
        return [*failed, *self.deployment.on_broken(device, micro_batch, code, detail)]

    def _on_worker_restarted(self, device: str, message: WorkerRestarted, now: float) -> list[Effect]:
        record = self.devices[device]
        record.restarted(message)
        record.apply(DeviceEvent.WORKER_RESTARTED)
        effects: list[Effect] = [Notice("warning", f"{device}: its worker restarted: {message.cause}")]
        if self.deployment.uses(device):
            effects += self._lose("worker_lost", f"the worker of {device} restarted: {message.cause}")
        return [*effects, *self.deployment.on_arrival(device, now)]

    def _why_not(self) -> str:
        """The error code of a session that cannot open now."""
        deployment = self.deployment
        if deployment.phase is Phase.REFUSED:
            return deployment.code
        return "no_agent" if deployment.phase is Phase.WAITING and deployment.missing() else "not_ready"

    def _is_source(self, device: str) -> bool:
        source = self.deployment.source
        return source is not None and source.name == device

    def _lose(self, code: str, detail: str) -> list[Effect]:
        return self.sessions.fail_all(code, detail)

    def _proceed(self, now: float) -> list[Effect]:
        effects = self.deployment.advance(now)
        if self.is_ready:
            effects += self.sessions.start(self.deployment.micro_batch)
        return effects

    def _resolve(self, effects: Sequence[Effect]) -> list[Effect]:
        """Addresses messages about sessions to the source's worker; without one they have nowhere to go."""
        source = self.deployment.source
        origin = source.worker_origin if source is not None else None
        resolved: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Ready):
                self._unannounced = effect
            elif not isinstance(effect, SendSource):
                resolved.append(effect)
            elif origin is not None:
                resolved.append(Send(origin, effect.message))
        if self.deployment.phase is not Phase.READY:
            self._unannounced = None
        if self._unannounced is not None and self.is_ready:
            resolved.append(self._unannounced)
            self._unannounced = None
        return resolved
