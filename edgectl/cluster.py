"""The coordinator's state machine: messages, ticks and sessions in, effects out. Pure.

Rules
1. Whoever sends a message is known by its key: `device` comes from the transport. A Hello that claims another is
   refused.
2. A supervisor's first message is Hello, a worker's is WorkerHello, again after every reconnect. What comes on another
   connection is not used; where a second agent has a device's key, the one that came first is told so.
3. A session lives on one route. When a device of that route is lost or restarts, it fails with an error that names
   the device; sessions of routes that avoid it go on. One that is only suspected, silent for a while, costs none: those
   on it go on, and others do not begin on its routes.
4. No sockets, no clock: `now` is seconds of a monotonic clock, everything to be done is returned as effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

from typing_extensions import assert_never

from agent.wire.measure_messages import DeviceMeasured, LinkMeasured, MeasureProgress, QualityMeasured
from agent.wire.messages import (
    PROTOCOL_VERSION,
    CoordinatorAlive,
    DeviceMessage,
    Failed,
    FromAgent,
    FromSource,
    Heartbeat,
    Hello,
    Loaded,
    LoadProgress,
    MicroBatchClosed,
    MicroBatchOpened,
    OpenSession,
    Rejected,
    SessionEnded,
    SessionFailed,
    SessionMoved,
    SplitKept,
    SplitMoved,
    Telemetry,
    TokenEvent,
    Welcome,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.adaptive.adapt import Adapter
from edgectl.adaptive.decision import Surroundings
from edgectl.admission import displaced, refusal
from edgectl.cluster_settings import ClusterSettings
from edgectl.deploy import Deployment, Order, Phase, naming
from edgectl.devices import DeviceEvent, DeviceRecord, DeviceState, DeviceTable
from edgectl.effects import Effect, Loading, Notice, Ready, Send, SendSource
from edgectl.engine import ANYBODY, Claim, EngineError, Health, ServerLoad
from edgectl.epochs import Epochs
from edgectl.routes import Seat
from edgectl.sessions import SessionTable
from planner.types import Plan

Inbound = Union[FromAgent, FromSource]

ALIVE_INTERVAL_S = 1.0
"""How often a source's worker hears from the coordinator: thirty times within COORDINATOR_SILENCE_S."""

BREAKING_CODES = frozenset({"answer_timeout", "frame_refused", "unknown_micro_batch"})
"""Failures of a session after which its micro-batch serves no other: the next one opens under a new epoch."""


class Cluster:
    """Devices, the deployment on them, and the sessions on the deployment."""

    def __init__(
        self,
        devices: Sequence[tuple[str, str]],
        order: Order,
        epochs: Epochs,
        version: str,
        settings: ClusterSettings | None = None,
    ) -> None:
        self._settings = settings or ClusterSettings()
        self.devices = DeviceTable(devices)
        self.deployment = Deployment(order, self.devices, epochs, self._settings)
        self.sessions = SessionTable(self._settings)
        self.adapter: Adapter | None = None
        if self._settings.adaptive is not None:
            self.adapter = Adapter(
                Surroundings(
                    self._settings.adaptive, self.deployment, self.devices, self.sessions, self._settings.channels
                )
            )
        self._version = version
        self._alive_sent = float("-inf")
        self._is_stopping = False
        self._observed: Plan | None = None
        """The plan that the sessions' traffic is about."""
        self._unannounced: Ready | None = None
        """A plan that runs, but whose source's worker has not connected yet: it may be later than its supervisor."""

    @property
    def is_ready(self) -> bool:
        """Whether sessions may be opened: there are micro-batches that serve them now, or once a device is heard."""
        return bool(self._seats())

    def _seats(self) -> list[Seat]:
        """Open micro-batches whose source can be told of sessions: its worker may connect later than its supervisor."""
        return [seat for seat in self.deployment.seats() if self.devices[seat.source].worker_origin is not None]

    def _heard_seats(self) -> list[Seat]:
        """Those on whose routes a session may begin: no device is suspected."""
        return [seat for seat in self._seats() if not self.deployment.suspects(seat.route)]

    def on_message(self, origin: bytes, device: str, message: Inbound, now: float) -> list[Effect]:
        """One decoded message of the connection `origin`, whose key belongs to `device`."""
        if device not in self.devices:
            return [Send(origin, Rejected("not_authorized", f"{device} is not among the devices of cluster.toml"))]
        if isinstance(message, (Hello, WorkerHello)):
            effects = self._on_first(origin, device, message, now)
        elif isinstance(message, (TokenEvent, SessionEnded, SessionFailed, SessionMoved)):
            effects = self._on_session_event(origin, device, message, now)
        elif isinstance(message, (SplitMoved, SplitKept)):
            effects = self._on_split_event(origin, device, message)
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
                effects += self._lose(record.name, "device_lost", f"device {record.name} is lost", now)
        for record in self.devices.suspected(now):
            silent = f"{record.name} is suspected: no heartbeat for {now - record.heard:.1f} s"
            effects.append(Notice("warning", f"{silent}; sessions on it go on, others wait or take another route"))
        effects += self.sessions.on_tick(now)
        effects += self.adapter.on_tick(now) if self.adapter is not None else []
        if now - self._alive_sent >= ALIVE_INTERVAL_S:
            self._alive_sent = now
            workers = [record.worker_origin for record in self.devices if record.worker_origin is not None]
            effects += [Send(origin, CoordinatorAlive()) for origin in workers]
        return self._resolve([*effects, *self._proceed(now)])

    def open_session(self, opening: OpenSession, now: float, claim: Claim = ANYBODY) -> list[Effect]:
        """Lets a session wait for its row. Raises EngineError: `no_agent`, `not_ready` or why the plan was refused;
        `queue_full`, `too_many_sessions`; `context_length_exceeded`."""
        if not self.is_ready:
            raise EngineError(self._why_not(), self.health().detail)
        plan = self.deployment.plan
        if plan is not None and len(opening.prompt) + opening.max_tokens > plan.context:
            # A row has so many positions, reserved before it starts: none is lost half-way for lack of them.
            detail = f"{len(opening.prompt)} tokens and {opening.max_tokens} more, the context is {plan.context}"
            raise EngineError("context_length_exceeded", detail)
        self.sessions.open(opening, claim, now, self._heard_seats())
        return self._resolve(self._proceed(now))

    def cancel(self, session: str, now: float) -> list[Effect]:
        """Ends a session for its reader at once. Unknown and ended ones are ignored."""
        return self._resolve([*self.sessions.cancel(session, now), *self._proceed(now)])

    def shut_down(self, now: float) -> list[Effect]:
        """Cancels every session and closes the micro-batches; the devices keep their layers."""
        self._is_stopping = True
        effects = self._resolve(self.sessions.cancel_all(now))
        return [*effects, *self.deployment.close()]

    def health(self) -> Health:
        """Whether a session opened now would run, and if not, why."""
        deployment = self.deployment
        missing = deployment.missing()
        expected = len(deployment.order.devices)
        suspects = [record.name for record in self.devices if record.is_suspected and deployment.uses(record.name)]
        is_ready = bool(self._heard_seats())
        if self.is_ready:
            detail = "ready" if is_ready else "sessions wait"
            detail += f"; {', '.join(suspects)} was not heard for a while" if suspects else ""
        elif deployment.phase is Phase.REFUSED:
            detail = deployment.detail
        elif deployment.phase is Phase.WAITING or deployment.is_down():
            problems = [f"{name} ({self.devices[name].problem})" for name in missing if self.devices[name].problem]
            waited = ", ".join(problems or missing)
            detail = f"waiting for {waited}" if missing else "planning"
        else:
            detail = "the devices load their layers" if deployment.phase is Phase.LOADING else "opening the route"
        return Health(is_ready, expected - len(missing), expected, detail)

    def load(self) -> ServerLoad:
        """How full the cluster is."""
        waiting, used = self.sessions.queued, self.sessions.running
        # A row that is free on the route of a suspected device is none; a session that runs there does.
        heard = self._heard_seats()
        in_use = self.sessions.in_use()
        rows = used + sum(seat.rows - in_use[seat.micro_batch] for seat in heard)
        is_free = rows > used and not waiting
        wait_s = 0.0 if is_free else self.sessions.traffic.wait_s(waiting + 1, rows)
        return ServerLoad(rows, used, self.sessions.queued_by_key(), wait_s)

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
            moves = self.adapter.resume(device) if self.adapter is not None else []
            return [Send(origin, CoordinatorAlive()), *self.sessions.resume(device, now), *moves]
        links = self._settings.links.get(device, ())
        welcome = Welcome(PROTOCOL_VERSION, self._version, self.devices.peers_of(device), links)
        if record.state is DeviceState.READY and record.is_same_worker(message.worker):
            self.devices.reconnected(origin, message, device, now)
            reopened = self.deployment.on_reconnected(device)
            return [Send(origin, welcome), Notice("info", f"{device} reconnected"), *reopened]
        uses = self.deployment.uses(device)
        lost = self._lose(device, "device_lost", f"device {device} started again", now) if uses else []
        self.devices.hello(origin, message, device, now)
        connected = Notice("info", f"{device} connected")
        return [Send(origin, welcome), connected, *lost, *self.deployment.on_arrival(device, now)]

    def _on_stranger(self, origin: bytes, device: str) -> list[Effect]:
        """A supervisor that has not said Hello yet, or whose device a newer connection has taken over."""
        if not self.devices[device].is_present:
            return []
        return [Send(origin, displaced(device))]

    def _on_session_event(
        self, origin: bytes, device: str, event: TokenEvent | SessionEnded | SessionFailed | SessionMoved, now: float
    ) -> list[Effect]:
        record = self.sessions.find(event.session)
        if record is None or record.seat is None or record.seat.source != device:
            return []  # Of a session that has ended, or from a device that is not its source.
        if origin != self.devices[device].worker_origin:
            return []  # From a worker that is gone.
        micro_batch = record.seat.micro_batch
        if isinstance(event, TokenEvent):
            self.deployment.on_progress(micro_batch)
            effects = self.sessions.on_token(event, now)
            return effects if self.adapter is None else [*effects, *self.adapter.on_token(micro_batch, now)]
        if isinstance(event, SessionMoved):
            found = self.deployment.find(micro_batch)
            return self.sessions.on_moved(event, found[0].split_points if found is not None else (), now)
        if isinstance(event, SessionEnded):
            return self.sessions.on_ended(event, now)
        effects = self.sessions.on_failed(event, now)
        if event.code in BREAKING_CODES:
            effects += self._break(device, micro_batch, event.code, event.detail, now)
        return effects

    def _on_split_event(self, origin: bytes, device: str, event: SplitMoved | SplitKept) -> list[Effect]:
        if self.adapter is None or origin != self.devices[device].worker_origin:
            return []
        if isinstance(event, SplitMoved):
            return self.adapter.on_moved(device, event)
        return self.adapter.on_kept(device, event)

    def _on_device_message(self, device: str, message: DeviceMessage, now: float) -> list[Effect]:
        record = self.devices[device]
        was_suspected = record.hear(now)
        if record.apply(DeviceEvent.HEARD):
            return [Notice("info", f"{device} is back"), *self.deployment.on_arrival(device, now)]
        heard = [Notice("info", f"{device} is heard again")] if was_suspected else []
        return [*heard, *self._on_news(record, message, now)]

    def _on_news(self, record: DeviceRecord, message: DeviceMessage, now: float) -> list[Effect]:
        device = record.name
        if isinstance(message, Heartbeat):
            record.heartbeat = message
            if self.adapter is not None:
                self.adapter.around.heard(device, message)
            return []
        if isinstance(message, LoadProgress):
            return self._on_load_progress(record, message)
        if isinstance(message, Loaded):
            return self._on_loaded(device, message)
        if isinstance(message, MicroBatchOpened):
            return self.deployment.on_opened(device, message)
        if isinstance(message, (MicroBatchClosed, MeasureProgress, DeviceMeasured, LinkMeasured, QualityMeasured)):
            return []  # Measurements are `edgectl profile`'s; they may come late, from one that was stopped.
        if isinstance(message, Failed):
            return self._on_failed(device, message, now)
        if isinstance(message, WorkerRestarted):
            return self._on_worker_restarted(device, message, now)
        assert_never(message)

    def _on_load_progress(self, record: DeviceRecord, message: LoadProgress) -> list[Effect]:
        progress = Loading(
            record.name, message.layers_done, message.layers_total, message.bytes_done, message.bytes_total
        )
        if not message.bytes_total or record.is_fetching:
            return [progress]
        record.is_fetching = True
        text = f"{record.name} fetches its layers: it has no copy of {message.model}, or one that differs from ours"
        return [Notice("info", text), progress]

    def _on_loaded(self, device: str, message: Loaded) -> list[Effect]:
        record = self.devices[device]
        if record.load is None or (message.model, message.digest) != (record.load.model, record.load.digest):
            return []  # The answer to a Load from before a restart of ours.
        record.loaded_bytes = message.memory_bytes
        record.apply(DeviceEvent.LOADED)
        if message.batch_invariant:
            return []
        return [Notice("warning", f"{device}: results depend on chunk sizes, so tokens may differ between runs")]

    def _on_failed(self, device: str, failed: Failed, now: float) -> list[Effect]:
        if failed.request != "micro-batch":
            return self.deployment.on_failed(device, failed, now)
        return self._break(device, failed.micro_batch, failed.code, failed.detail, now)

    def _break(self, device: str, micro_batch: int, code: str, detail: str, now: float) -> list[Effect]:
        """Sessions of an older micro-batch have failed with it: nobody has a row under its number."""
        failed = self.sessions.fail_running((micro_batch,), code, naming(device, detail), now)
        return [*failed, *self.deployment.on_broken(device, micro_batch, code, detail, now)]

    def _on_worker_restarted(self, device: str, message: WorkerRestarted, now: float) -> list[Effect]:
        record = self.devices[device]
        record.restarted(message)
        record.apply(DeviceEvent.WORKER_RESTARTED)
        effects: list[Effect] = [Notice("warning", f"{device}: its worker restarted: {message.cause}")]
        if self.deployment.uses(device):
            effects += self._lose(device, "worker_lost", f"the worker of {device} restarted: {message.cause}", now)
        return [*effects, *self.deployment.on_arrival(device, now)]

    def _why_not(self) -> str:
        """The error code of a session that cannot open now."""
        deployment = self.deployment
        if deployment.phase is Phase.REFUSED:
            return deployment.code
        is_waiting = deployment.phase is Phase.WAITING or deployment.is_down()
        return "no_agent" if is_waiting and deployment.missing() else "not_ready"

    def _lose(self, device: str, code: str, detail: str, now: float) -> list[Effect]:
        """Closes what runs through a device and fails its sessions; who waits goes on waiting where others serve."""
        numbers = self.deployment.numbers_through(device)
        effects = [*self.sessions.fail_running(numbers, code, detail, now), *self.deployment.lose(device)]
        if not self.deployment.is_serving():
            effects += self.sessions.fail_queued(code, detail)
        return effects

    def _proceed(self, now: float) -> list[Effect]:
        if self._is_stopping:
            return []
        effects = self.deployment.advance(now)
        if self.deployment.plan is not self._observed and self.deployment.plan is not None:
            self._observed = self.deployment.plan
            self.sessions.traffic.begin(self._observed)
        if self.deployment.phase is Phase.REFUSED:
            effects += self.sessions.fail_queued(self.deployment.code, self.deployment.detail)
        if self.adapter is None or not self.sessions.queued:
            return [*effects, *self.sessions.start(self._heard_seats(), now)]
        before = self.sessions.in_use()
        started = self.sessions.start(self._heard_seats(), now)
        begun = [number for number in self.sessions.in_use() if not before[number]]
        # A micro-batch that was idle moves before its first session begins there.
        return [*effects, *self.adapter.on_seated(begun, now), *started]

    def _resolve(self, effects: Sequence[Effect]) -> list[Effect]:
        """Addresses messages about sessions to their source's worker; without one they have nowhere to go."""
        resolved: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Ready):
                self._unannounced = effect
            elif not isinstance(effect, SendSource):
                resolved.append(effect)
            elif (origin := self.devices[effect.source].worker_origin) is not None:
                resolved.append(Send(origin, effect.message))
        if self.deployment.phase is not Phase.READY:
            self._unannounced = None
        if self._unannounced is not None and self.is_ready:
            resolved.append(self._unannounced)
            self._unannounced = None
        return resolved
