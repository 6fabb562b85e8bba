"""The worker process: sockets, executor and stage in one blocking loop. No asyncio, no threads of its own.

Before each run everything that has arrived is read, and only then the stage is asked what to run: a cancel never waits
longer than one run, and what became ready meanwhile is chosen from.
"""

from __future__ import annotations

import logging
import math
import sys
import time

from agent import handing, step
from agent.compute import kernels
from agent.config import AgentConfig
from agent.device.sensors.host import has_nvidia_device
from agent.device.telemetry import TelemetryRecorder
from agent.effects import Connect, Disconnect, Effect, Emit, Job, Notify, Reply, Send
from agent.errors import BadMessage, ConfigError
from agent.link_probe import LinkProbe
from agent.place import NOTHING_LOADED
from agent.resident_model import ResidentModel
from agent.stage import Stage
from agent.wire import codec, messages
from agent.wire.codec import CodecId, FrameKind
from agent.wire.control_plane import ControlClient
from agent.wire.data_plane import DataPlane
from agent.wire.events import (
    Connected,
    ControlConnected,
    Controlled,
    Disconnected,
    Event,
    Readable,
    Received,
    Refused,
    Replied,
)
from agent.wire.measure_messages import MeasureDevice, MeasureLink, MeasureQuality
from agent.wire.message import Message
from agent.wire.messages import Failed, Load
from agent.wire.security import AllowList, load_key_file
from agent.worker_channel import (
    ChannelClosed,
    Stop,
    ToWorker,
    WorkerChannel,
    WorkerReady,
    WorkerTick,
    run_child,
)

logger = logging.getLogger(__name__)

POLL_MS = 250
MOST_POLLS = 64
"""Between two runs: a peer that never stops sending must not keep this device from computing."""
REPORT_INTERVAL_S = 0.5
"""How often the supervisor hears from the loop: twice per heartbeat."""


class Worker:
    """Everything of one device that touches hidden states."""

    def __init__(self, config: AgentConfig, channel: WorkerChannel) -> None:
        keys = load_key_file(config.key_file)
        self._config = config
        self._channel = channel
        self._peers = AllowList()
        self._plane = DataPlane(keys, self._peers, config.bind)
        self._coordinator = ControlClient(keys, config.coordinator, config.coordinator_key, f"{config.name}-worker")
        self._plane.attach(self._coordinator)
        self._plane.register(channel.fileno())
        self._telemetry = TelemetryRecorder()
        self._model = ResidentModel(config, channel, lambda busy: self._report(time.monotonic(), busy))
        self._stage = self._empty_stage()
        self._probe: LinkProbe | None = None
        self._emitted: list[messages.FromSource] = []
        """Events for the coordinator that have not left yet."""
        self._handshakes_refused = 0
        """How many of the data plane's are in the telemetry already."""
        self._tick = 0
        self._reported_s = 0.0
        self._stopping = False

    def _empty_stage(self) -> Stage:
        """A stage without a model: it refuses what it is asked, with a reason, instead of keeping silent."""
        return Stage(self._config.name, NOTHING_LOADED, self._telemetry, time.monotonic())

    def run(self) -> None:
        """Serve until the supervisor says stop or is gone."""
        self._model.provider = _probe(self._config)
        self._channel.send(WorkerReady(self._plane.endpoint, self._model.provider))
        try:
            wait_ms = 0
            while not self._stopping:
                self._read(wait_ms)
                # Before the run, which may take longer than any deadline: what came meanwhile has been read by now.
                self._on_time(time.monotonic())
                job = self._stage.next_job(time.monotonic())
                if job is not None:
                    self._run_job(job)
                # A token's event leaves while the next stage computes, not before this one does: on a route of several
                # stages nobody then waits for it.
                self._emit()
                wait_ms = 0 if job is not None else self._wait_ms(time.monotonic())
        except ChannelClosed:
            logger.warning("supervisor_gone")
        finally:
            self._unload()
            self._emit()
            self._coordinator.close()
            self._plane.close()

    # --- events ---

    def _read(self, wait_ms: int) -> None:
        """Take in what has arrived; a poll hands out one message per connection."""
        for _ in range(MOST_POLLS):
            events = self._plane.poll(wait_ms)
            for event in events:
                self._on_event(event)
            if not events:
                return
            wait_ms = 0

    def _on_event(self, event: Event) -> None:
        now = time.monotonic()
        if self._probe is not None and self._probe.owns(event):
            self._perform(self._probe.on_event(event, now))
            return
        match event:
            case Received(origin, device, parts):
                self._telemetry.add("frames_received")
                self._perform(self._stage.on_parts(origin, device, parts, now))
            case Replied(peer, parts):
                self._perform(self._stage.on_replied(peer, parts, now))
            case Connected(peer, again):
                logger.info("peer_connected", extra={"peer": peer, "again": again})
                kept = self._stage.on_connected(peer)
                self._telemetry.add("frames_resent", len(kept))
                self._perform(kept)
            case Disconnected(peer):
                logger.warning("peer_disconnected", extra={"peer": peer})
            case Refused(peer):
                logger.warning("peer_refused_key", extra={"peer": peer})
            case Readable():
                for message in self._channel.receive(ToWorker):
                    try:
                        self._on_request(message)
                    except ConfigError as problem:
                        self._refuse(message, problem)
            case ControlConnected():
                self._coordinator.send(
                    messages.encode(messages.WorkerHello(messages.PROTOCOL_VERSION, self._config.name))
                )
            case Controlled(data):
                self._on_control(data, now)

    def _on_control(self, data: bytes, now: float) -> None:
        try:
            message: messages.ToSource = messages.decode(data, messages.ToSource)
        except BadMessage as problem:
            logger.error("bad_control_message", extra={"problem": str(problem)})
            return
        if isinstance(message, messages.Rejected):
            logger.error("coordinator_rejected_worker", extra={"code": message.code, "detail": message.detail})
            return
        self._stage.coordinator_heard(now)
        match message:
            case messages.CoordinatorAlive():
                pass
            case messages.OpenSession():
                self._perform(self._stage.open_session(message, now))
            case messages.CancelSession(session):
                self._perform(self._stage.cancel_session(session))
            case messages.ResumeEvents(session, index):
                self._perform(self._stage.resume_events(session, index))
            case messages.MoveSplit(number, split):
                self._perform(self._stage.move_split(number, split, now))

    def _on_request(self, message: messages.ToAgent | Stop) -> None:
        """A request of the coordinator that the supervisor passed on, or the supervisor's own."""
        match message:
            case Stop():
                self._stopping = True
            case messages.Welcome():
                self._peers.replace({peer.key: peer.device for peer in message.peers})
                self._plane.emulate(message.links)
            case Load():
                self._load(message)
            case messages.Unload():
                self._unload()
            case MeasureDevice():
                self._measure_device(message)
            case MeasureLink():
                self._measure_link(message)
            case MeasureQuality():
                self._unload()
                self._model.measure_quality(message)
            case messages.OpenMicroBatch():
                self._perform(self._stage.open_micro_batch(message))
            case messages.CloseMicroBatch():
                self._perform(self._stage.close_micro_batch(message.micro_batch))

    def _refuse(self, message: Message, problem: ConfigError) -> None:
        """Another device's endpoint or key is none: that costs a micro-batch, not this device's process."""
        logger.error("request_refused", extra={"problem": str(problem)})
        number = message.micro_batch if isinstance(message, messages.OpenMicroBatch) else -1
        if number >= 0:
            self._perform(self._stage.close_micro_batch(number))
        request = str(type(message).__struct_config__.tag)
        self._channel.send(Failed(request, problem.code, f"{self._config.name}: {problem}", number))

    def _wait_ms(self, now: float) -> int:
        if self._probe is None or self._probe.due_s is None:
            return POLL_MS
        return min(POLL_MS, max(0, math.ceil(1e3 * (self._probe.due_s - now))))

    def _on_time(self, now: float) -> None:
        if self._probe is not None:
            self._perform(self._probe.tick(now))
            if self._probe.is_done:
                self._probe = None
        if now - self._reported_s < REPORT_INTERVAL_S:
            return
        self._report(now)
        self._perform(self._stage.tick(now))

    def _report(self, now: float, busy: str = "") -> None:
        self._reported_s = now
        self._tick += 1
        refused = self._plane.handshakes_refused
        self._telemetry.add("handshakes_refused", refused - self._handshakes_refused)
        self._handshakes_refused = refused
        self._telemetry.see_links(self._plane.observed_links())
        self._channel.send(WorkerTick(self._tick, busy, self._model.memory_bytes, self._telemetry.snapshot()))

    # --- effects ---

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, frame):
                    self._send(peer, frame)
                case Emit(message):
                    self._emitted.append(message)
                case Reply(origin, frame):
                    self._plane.reply(origin, codec.encode(frame, kernels.crc32c))
                case Notify(notice):
                    self._channel.send(notice)
                case Connect(peer, endpoint, key):
                    self._plane.connect(peer, endpoint, key)
                case Disconnect(peer):
                    self._plane.disconnect(peer)

    def _send(self, peer: str, frame: codec.Frame) -> None:
        parts = codec.encode(frame, kernels.crc32c)
        if not self._plane.send(peer, parts):
            return
        size = sum(map(len, parts))
        self._telemetry.add("frames_sent")
        self._telemetry.add("bytes_sent", size)
        # An answer to a decode step is part of what a token costs on the wire; an answer to a chunk is not.
        if frame.kind is FrameKind.DECODE or (frame.kind is FrameKind.ANSWER and frame.sample):
            self._telemetry.add("decode_frames_sent")
            self._telemetry.add("decode_bytes_sent", size)

    def _emit(self) -> None:
        """Tell the coordinator what has happened. What cannot leave now it asks for again: the stage keeps it."""
        for message in self._emitted:
            self._coordinator.send(messages.encode(message))
        self._emitted.clear()

    def _run_job(self, job: Job) -> None:
        executor = self._model.executor
        assert executor is not None, "a stage without a model has no job"
        # A route of one has no moment in which another stage computes, and a chunk is long.
        if job.outgoing is CodecId.NONE or job.kind is FrameKind.PREFILL:
            self._emit()
        try:
            if job.hands is None:
                outcome = step.run(job, executor, time.monotonic, self._model.receiver)
            else:
                outcome = handing.run(job, executor, time.monotonic)
        except Exception as problem:  # whatever the runtime raises costs this micro-batch, not the process
            logger.exception("run_failed", extra={"micro_batch": job.micro_batch, "step": job.step})
            self._perform(self._stage.on_compute_failed(job, problem))
            return
        self._perform(self._stage.on_computed(job, outcome, time.monotonic()))

    # --- models ---

    def _load(self, request: Load) -> None:
        if self._model.has(request):
            self._model.tell_loaded(0.0)
            return
        self._unload()
        if self._model.load(request):
            self._stage = Stage(self._config.name, self._model.shape, self._telemetry, time.monotonic())

    def _measure_device(self, request: MeasureDevice) -> None:
        """A link's measurement would spoil the numbers as well."""
        self._unload()
        self._end_probe()
        self._model.measure(request)

    def _measure_link(self, request: MeasureLink) -> None:
        """Begins; the loop's events carry it on. A newer request takes an older one's place."""
        self._end_probe()
        probe = LinkProbe(request, self._config.name, time.monotonic())
        self._perform(probe.start())
        self._probe = probe  # Not before: with an endpoint or key that is none there is nothing to carry on.

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._plane.disconnect(self._probe.connection)
            self._probe = None

    def _unload(self) -> None:
        self._perform(self._stage.close_all())
        self._stage = self._empty_stage()
        self._model.unload()


def _probe(config: AgentConfig) -> str:
    """The execution provider this device will compute with. Raises ProviderUnavailable for a configured one."""
    if config.provider == "cpu" or (config.provider == "auto" and not has_nvidia_device()):
        return "cpu"
    # ONNX Runtime comes into memory here only where there is something to probe for.
    from agent.compute.provider_probe import choose_provider

    return choose_provider(config.provider)


def main(descriptor: int) -> int:
    """Entry of the child process."""
    return run_child(descriptor, "worker", lambda config, channel: Worker(config, channel).run())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
