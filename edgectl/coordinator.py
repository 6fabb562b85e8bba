"""The coordinator: `Cluster` joined to the control socket and the clock; the Engine that the HTTP server speaks to.

Everything runs on one asyncio loop. A message or a tick goes into the cluster, its effects are carried out in order:
events to the sessions' readers at once, messages through one sending task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from typing_extensions import assert_never

from agent.errors import BadMessage
from agent.wire.messages import EndReason, OpenSession, Sampling, SessionEnded, Telemetry, TokenEvent, decode, encode
from edgectl.adaptive.report import SplitReport
from edgectl.cluster import Cluster, Inbound
from edgectl.effects import Deliver, Effect, Loading, NoPlan, Notice, Ready, Send, SendSource, SessionEvent
from edgectl.engine import ANYBODY, Claim, EngineError, Health, ServerLoad
from edgectl.status import status_of
from edgectl.tasks import until_one_ends
from planner.model_spec import ModelSpec

logger = logging.getLogger(__name__)

TICK_INTERVAL_S = 0.25
"""Silence is noticed this much late at most; a tick costs microseconds."""

MAX_OUTBOX_MESSAGES = 1 << 16
"""Control messages not yet handed to the socket; a sender that is this far behind will not catch up. When 400 devices
come at once they are told to close 128 micro-batches each."""

SHUTDOWN_PATIENCE_S = 2.0
"""How long the last messages (cancel, close) may take to leave."""


class ControlServer(Protocol):
    """The coordinator's end of the control plane; `agent.wire.transport.AsyncControlServer` is one."""

    async def receive(self) -> tuple[bytes, str, bytes]:
        """Next message: connection, device its key belongs to, bytes."""

    async def send(self, origin: bytes, data: bytes) -> bool:
        """False when the connection is gone; the message is with it."""


class Reporter:
    """Who watches a deployment; every method may be left as it is."""

    def notice(self, notice: Notice) -> None:
        """Something a person may want to read."""

    def loading(self, progress: Loading) -> None:
        """A device has loaded one more layer."""

    def ready(self, ready: Ready) -> None:
        """The plan runs."""

    def no_plan(self, problem: NoPlan) -> None:
        """All devices are there, and the model does not fit."""


class SessionReader:
    """The Generation of one session: what the coordinator delivers, in order."""

    def __init__(self, opening: OpenSession, cancel: Callable[[str], None]) -> None:
        self._session = opening.session
        self._stop_ids = frozenset(opening.stop_ids)
        self._cancel = cancel
        # Bounded by max_tokens: the source sends no more than that.
        self._events: asyncio.Queue[SessionEvent] = asyncio.Queue()
        self._reason: EndReason | None = None

    @property
    def reason(self) -> EndReason | None:
        return self._reason

    def deliver(self, event: SessionEvent) -> None:
        self._events.put_nowait(event)

    def cancel(self) -> None:
        self._cancel(self._session)

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while True:
            event = await self._events.get()
            if isinstance(event, EngineError):
                raise event
            if isinstance(event, SessionEnded):
                self._reason = event.reason
                return
            # The source reports a stop id like any token; it is in the log, but no part of the answer.
            if event.token not in self._stop_ids:
                yield event


class Coordinator:
    """An Engine over the devices of a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        spec: ModelSpec,
        context: int,
        *,
        start: int,
        clock: Callable[[], float],
        reporter: Reporter | None = None,
    ) -> None:
        self.cluster = cluster
        self._spec = spec
        self._context = context
        self._start = start
        self._clock = clock
        self._reporter = reporter or Reporter()
        self._readers: dict[str, SessionReader] = {}
        self._opened = 0
        self._outbox: asyncio.Queue[Send] = asyncio.Queue(MAX_OUTBOX_MESSAGES)
        self._is_closing = False

    @property
    def model(self) -> str:
        return self.cluster.deployment.order.model

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def context(self) -> int:
        return self._context

    async def open(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
        claim: Claim = ANYBODY,
    ) -> SessionReader:
        """Opens a session, which may wait for a row. Raises EngineError."""
        if self._is_closing:
            raise EngineError("shutting_down", "the coordinator shuts down")
        self._opened += 1
        opening = OpenSession(
            session=f"{self._start}-{self._opened}",
            micro_batch=0,
            prompt=tuple(prompt),
            max_tokens=max_tokens,
            sampling=sampling,
            stop_ids=tuple(stop_ids),
        )
        effects = self.cluster.open_session(opening, self._clock(), claim)
        reader = SessionReader(opening, self._cancel)
        self._readers[opening.session] = reader
        self._carry_out(effects)
        return reader

    def health(self) -> Health:
        return self.cluster.health()

    def load(self) -> ServerLoad:
        return self.cluster.load()

    def telemetry(self) -> Mapping[str, Telemetry]:
        return self.cluster.telemetry()

    def splits(self) -> SplitReport | None:
        adapter = self.cluster.adapter
        return None if adapter is None else adapter.report()

    def status(self) -> dict[str, object]:
        return status_of(self.cluster, self._clock())

    async def run(self, server: ControlServer) -> None:
        """Serves the control plane until cancelled; raises what its tasks raise."""
        await until_one_ends(receive=self._receive(server), send=self._send(server), tick=self._tick())

    async def shut_down(self) -> None:
        """Ends every session and waits until the devices have been told; `run` must still be running."""
        self._is_closing = True
        self._carry_out(self.cluster.shut_down(self._clock()))
        try:
            await asyncio.wait_for(self._outbox.join(), SHUTDOWN_PATIENCE_S)
        except asyncio.TimeoutError:
            logger.warning("shutdown_messages_left", extra={"messages": self._outbox.qsize()})

    def _cancel(self, session: str) -> None:
        self._carry_out(self.cluster.cancel(session, self._clock()))

    async def _receive(self, server: ControlServer) -> None:
        while True:
            origin, device, data = await server.receive()
            try:
                message: Inbound = decode(data, Inbound)
            except BadMessage as problem:
                logger.warning("bad_message", extra={"device": device, "detail": str(problem)})
                continue
            self._carry_out(self.cluster.on_message(origin, device, message, self._clock()))

    async def _send(self, server: ControlServer) -> None:
        while True:
            effect = await self._outbox.get()
            # Lost with its connection: a device that comes back says Hello, and a source is asked what it missed.
            if not await server.send(effect.origin, encode(effect.message)):
                logger.debug("message_lost", extra={"kind": type(effect.message).__name__})
            self._outbox.task_done()

    async def _tick(self) -> None:
        while True:
            self._carry_out(self.cluster.on_tick(self._clock()))
            await asyncio.sleep(TICK_INTERVAL_S)

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._outbox.put_nowait(effect)
            elif isinstance(effect, Deliver):
                self._deliver(effect)
            elif isinstance(effect, Notice):
                self._reporter.notice(effect)
            elif isinstance(effect, Loading):
                self._reporter.loading(effect)
            elif isinstance(effect, Ready):
                self._reporter.ready(effect)
            elif isinstance(effect, NoPlan):
                self._reporter.no_plan(effect)
            elif isinstance(effect, SendSource):
                raise AssertionError(f"unaddressed {effect.message}")  # Cluster addresses all of them.
            else:
                assert_never(effect)

    def _deliver(self, effect: Deliver) -> None:
        reader = self._readers.get(effect.session)
        if reader is None:
            return
        if not isinstance(effect.event, TokenEvent):
            del self._readers[effect.session]
        reader.deliver(effect.event)
