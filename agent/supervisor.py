"""The supervisor process: control plane, heartbeats, and the worker's life. Computes nothing, imports no NumPy.

It passes the coordinator's requests to the worker and the worker's answers back. When the worker dies it starts a new
one, with back-off, and says so; the coordinator then loads again.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version

from agent.config import AgentConfig, advertised_endpoint
from agent.device.sensors.host import boot_id, model_memory_bytes
from agent.device.sensors.radio import RadioSensor
from agent.errors import BadMessage
from agent.notify import Watchdog, notify, watchdog_interval_s
from agent.weight_child import WeightChild
from agent.wire import messages
from agent.wire.control_plane import ControlClient
from agent.wire.events import ControlConnected, ControlDisconnected, Controlled, ControlRefused, Event, Readable
from agent.wire.measure_messages import MAX_MEASURE_S, MeasureDevice, MeasureQuality
from agent.wire.message import Message
from agent.wire.messages import Heartbeat, Hello, Load, LoadProgress, Rejected, ToAgent, Welcome, WorkerRestarted
from agent.wire.security import load_key_file
from agent.worker_channel import (
    ChannelClosed,
    Configure,
    FromWorker,
    Stop,
    WorkerChannel,
    WorkerReady,
    WorkerTick,
    start_child,
)

logger = logging.getLogger(__name__)

FIRST_RESTART_S = 0.5
LONGEST_RESTART_S = 10.0
"""Back-off doubles between these; a worker that served a minute starts again from the first."""
SETTLED_S = 60.0
STOP_S = 5.0
"""How long a worker may take to finish its run when the daemon stops."""
EXIT_S = 1.0
"""How long a worker whose pipe has closed may take to exit by itself."""
LOAD_DEADLINE_S = 600.0
"""A load or a measurement that takes longer than this counts as hung."""
POLL_MS = 250
NO_TICK = WorkerTick(0, "", 0, messages.Telemetry())


class Supervisor:
    """One agent on one device."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._keys = load_key_file(config.key_file)
        self._client = ControlClient(self._keys, config.coordinator, config.coordinator_key, config.name)
        self._weights = WeightChild(config, self._client) if config.bulk_bind else None
        self._radio = RadioSensor()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: WorkerChannel | None = None
        self._ready: WorkerReady | None = None
        self._welcome: Welcome | None = None
        self._tick = NO_TICK
        self._busy_until_s = 0.0
        """When the long operation that was asked for last counts as hung."""
        self._bytes_fetched = 0
        """What the load at hand has fetched by now."""
        self._worker = ""
        self._restart_at_s = 0.0
        self._back_off_s = FIRST_RESTART_S
        self._started_s = 0.0
        self._died_of: str | None = None
        self._connected = False
        self._beat_s = 0.0
        self._stopping = False
        interval_s = watchdog_interval_s(os.environ, os.getpid())
        self._watchdog = Watchdog(interval_s, ("supervisor", "worker")) if interval_s else None

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))
        try:
            while not self._stopping:
                now = time.monotonic()
                if self._process is None and now >= self._restart_at_s:
                    self._start_worker(now)
                if self._weights is not None and self._weights.tend(now):
                    self._say_hello()
                for event in self._client.poll(POLL_MS):
                    self._on_event(event)
                self._on_time(time.monotonic())
        finally:
            _tell_systemd("STOPPING=1")
            self._stop_worker()
            self._radio.close()
            if self._weights is not None:
                self._weights.stop()
            self._client.close()
        return 0

    # --- the coordinator ---

    def _on_event(self, event: Event) -> None:
        match event:
            case ControlConnected():
                self._connected = True
                self._say_hello()
            case Controlled(data):
                self._on_control(data)
            case ControlDisconnected():
                self._connected = False
            case ControlRefused():
                logger.error(
                    "coordinator_refused_key",
                    extra={
                        "device": self._config.name,
                        "key": self._keys.public,
                        "hint": "list this key in cluster.toml",
                    },
                )
            case Readable(descriptor) if self._weights is not None and self._weights.owns(descriptor):
                if self._weights.on_readable():
                    self._say_hello()
            case Readable(descriptor) if self._channel is not None and self._channel.fileno() == descriptor:
                # Else an event before this one found the process gone, and nothing may be there to read.
                self._on_worker_readable()

    def _on_control(self, data: bytes) -> None:
        try:
            message: ToAgent = messages.decode(data, ToAgent)
        except BadMessage as problem:
            logger.error("bad_control_message", extra={"problem": str(problem)})
            return
        if isinstance(message, Rejected):
            logger.error("coordinator_rejected_agent", extra={"code": message.code, "detail": message.detail})
            return
        if isinstance(message, Welcome):
            self._welcome = message
            if self._weights is not None:
                self._weights.welcome(message)
        if self._channel is not None:
            if isinstance(message, (Load, MeasureDevice, MeasureQuality)) and self._watchdog is not None:
                # The worker refuses what is not within the limits; here it must not put the deadline off for ever.
                self._busy_until_s = time.monotonic() + LOAD_DEADLINE_S + _allowed_s(message)
                self._watchdog.begin("worker", self._busy_until_s)
            self._to_worker(lambda channel: channel.send(message))

    def _say_hello(self) -> None:
        if self._ready is None or not self._connected or (self._weights and not self._weights.is_settled):
            return
        bulk = self._weights.endpoint if self._weights is not None else ""
        self._send(
            Hello(
                protocol=messages.PROTOCOL_VERSION,
                device=self._config.name,
                agent_version=version("edgectl"),
                boot_id=boot_id(),
                data_endpoint=advertised_endpoint(self._config, self._ready.data_endpoint),
                memory_bytes=self._memory_bytes(),
                provider=self._ready.provider,
                bulk_endpoint=advertised_endpoint(self._config, bulk) if bulk else "",
                worker=self._worker,
            )
        )

    def _memory_bytes(self) -> int:
        limit_bytes = self._config.memory_limit_bytes
        if self._config.emulate and limit_bytes:
            # A device that is played takes none of this machine's, so it may have more than this machine.
            return limit_bytes
        return model_memory_bytes(limit_bytes, held_bytes=self._tick.resident_bytes)

    def _send(self, message: Message) -> None:
        # Not sent while disconnected: a coordinator that comes back starts from this agent's Hello.
        self._client.send(messages.encode(message))

    def _on_time(self, now: float) -> None:
        if now - self._beat_s >= messages.HEARTBEAT_INTERVAL_S:
            self._beat_s = now
            tick = self._tick
            radios = self._radio.sample(now)
            self._send(Heartbeat(tick.tick, tick.busy, tick.telemetry, tick.resident_bytes, radios))
        if self._watchdog is not None:
            self._watchdog.tick("supervisor")
            if self._watchdog.feed(now):
                _tell_systemd("WATCHDOG=1")

    # --- the worker ---

    def _start_worker(self, now: float) -> None:
        self._worker = secrets.token_hex(8)
        self._tick = NO_TICK
        self._process, ours = start_child("agent.worker")
        self._channel = WorkerChannel(ours)
        self._client.register(ours.fileno())
        self._started_s = now

        def introduce(channel: WorkerChannel) -> None:
            channel.send(Configure.of(self._config))
            if self._welcome is not None:
                # Whoever may connect to this device may connect to its next worker.
                channel.send(self._welcome)

        self._to_worker(introduce)

    def _on_worker_readable(self) -> None:
        def receive(channel: WorkerChannel) -> None:
            for message in channel.receive(FromWorker):
                self._on_worker_message(message)

        self._to_worker(receive)

    def _on_worker_message(self, message: FromWorker) -> None:
        match message:
            case WorkerReady():
                logger.info("worker_ready", extra={"endpoint": message.data_endpoint, "provider": message.provider})
                self._ready = message
                _tell_systemd("READY=1", "STATUS=waiting for the coordinator")
                if self._died_of is not None and self._connected:
                    endpoint = advertised_endpoint(self._config, message.data_endpoint)
                    self._send(WorkerRestarted(self._died_of, endpoint, self._worker))
                else:
                    self._say_hello()
                self._died_of = None
            case WorkerTick():
                self._on_tick(message)
            case LoadProgress():
                self._on_load_progress(message)
                self._send(message)
            case _:
                self._send(message)

    def _on_load_progress(self, progress: LoadProgress) -> None:
        """Weights that arrive put the deadline off: over a slow link they take hours."""
        if progress.bytes_done > self._bytes_fetched:
            self._busy_until_s = time.monotonic() + LOAD_DEADLINE_S
        self._bytes_fetched = progress.bytes_done

    def _on_tick(self, tick: WorkerTick) -> None:
        if tick.busy != self._tick.busy:
            _tell_systemd(f"STATUS={tick.busy or 'serving'}")
        self._tick = tick
        if self._watchdog is not None:
            if tick.busy:
                # Again: a tick that was on its way when the operation was asked for has ended it.
                self._watchdog.begin("worker", self._busy_until_s)
            else:
                self._watchdog.end("worker")
            self._watchdog.tick("worker")

    def _to_worker(self, act: Callable[[WorkerChannel], None]) -> None:
        """Talk to the worker; if it turns out to be gone, arrange for another one."""
        assert self._channel is not None
        try:
            act(self._channel)
        except (ChannelClosed, BadMessage):
            self._worker_died(time.monotonic())

    def _worker_died(self, now: float) -> None:
        assert self._process is not None
        self._forget_channel()
        try:
            # Its end of the pipe closes a moment before it exits, and its status says why.
            status = self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        self._ready = None
        self._died_of = f"{self._config.name}: worker {_exit_words(status)}"
        if now - self._started_s > SETTLED_S:
            self._back_off_s = FIRST_RESTART_S
        self._restart_at_s = now + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, LONGEST_RESTART_S)
        logger.error("worker_died", extra={"cause": self._died_of, "restart_in_s": self._restart_at_s - now})

    def _stop_worker(self) -> None:
        if self._process is None or self._channel is None:
            return
        try:
            self._channel.send(Stop())
            self._process.wait(STOP_S)
        except (ChannelClosed, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._forget_channel()

    def _forget_channel(self) -> None:
        if self._channel is not None:
            self._client.unregister(self._channel.fileno())
            self._channel.close()
            self._channel = None


def _allowed_s(message: Load | MeasureDevice | MeasureQuality) -> float:
    """How long what is asked for may take beside a load."""
    if isinstance(message, MeasureQuality):
        return MAX_MEASURE_S
    return min(max(0.0, message.seconds), MAX_MEASURE_S) if isinstance(message, MeasureDevice) else 0.0


def _tell_systemd(*lines: str) -> None:
    """A service manager that cannot be reached is its own problem: the device goes on serving."""
    try:
        notify(os.environ, *lines)
    except OSError as problem:
        logger.warning("systemd_unreachable", extra={"problem": str(problem)})


def _exit_words(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
