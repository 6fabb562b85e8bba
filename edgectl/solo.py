"""A whole model in this one process, as an Engine: no sockets, no supervisor, the same stage and executor as a device.

It drives `agent.stage` over a route of one stage exactly as the worker does, so its tokens are those of any plan. Runs
block the loop between two tokens: this serves one person at a terminal and the parity check, not a crowd.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agent.config import AgentConfig
from agent.device.sensors.host import has_nvidia_device
from agent.device.telemetry import TelemetryRecorder
from agent.effects import Effect, Emit, Notify
from agent.place import ModelShape
from agent.stage import Stage
from agent.wire.addresses import StageAddress
from agent.wire.messages import (
    EndReason,
    Failed,
    FromSource,
    Load,
    OpenMicroBatch,
    OpenSession,
    Sampling,
    SessionEnded,
    SessionFailed,
    Telemetry,
    TokenEvent,
)
from edgectl.engine import ANYBODY, Claim, EngineError, Health, ServerLoad
from edgectl.instructions import PREFILL_CHUNK_TOKENS
from edgectl.model_source import CACHE_DIR, LocatedModel
from edgectl.planning import ServedModel, ServingOptions, context_of
from planner.types import LayerRange

if TYPE_CHECKING:
    from agent.compute.executor import Executor
    from edgectl.adaptive.report import SplitReport
    from planner.model_spec import ModelSpec

DEVICE = "this-process"
MICRO_BATCH = 1


def load_solo(
    located: LocatedModel, model: ServedModel, options: ServingOptions, progress: Callable[[int, int], None]
) -> SoloEngine:
    """Loads every layer here, with the checks of an agent. Raises AgentError and PlannerError as an agent would."""
    from agent.loader import load_model

    context = context_of(model.spec, options)
    config = AgentConfig(
        name=DEVICE,
        models_dir=located.directory.parent,
        cache_dir=CACHE_DIR.expanduser(),
        threads=int(os.environ.get("EDGE_AGENT__THREADS", "0")),
    )
    request = Load(
        model=located.directory.name,
        digest=model.digest,
        resident=((0, model.spec.num_layers),),
        quantization=options.quantization,
        block_size=options.block_size,
        boundary=options.boundary,
        slots=1,
        context=context,
    )

    def layers(done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        """The model is here: no bytes travel."""
        progress(done, total)

    loaded = load_model(request, config, _provider(), layers)
    return SoloEngine(model.name, loaded.executor, time.monotonic)


def _provider() -> str:
    """As an agent with default settings chooses it."""
    if not has_nvidia_device():
        return "cpu"
    from agent.compute.provider_probe import choose_provider

    return choose_provider("auto")


class SoloEngine:
    """The Engine over one executor; one session at a time, the others wait their turn."""

    def __init__(self, model: str, executor: Executor, clock: Callable[[], float]) -> None:
        self._model = model
        self._executor = executor
        self._clock = clock
        self._telemetry = TelemetryRecorder()
        spec = executor.spec
        shape = ModelShape(
            spec.num_layers, spec.hidden_size, executor.slots, executor.context, (LayerRange(0, spec.num_layers),)
        )
        self._stage = Stage(DEVICE, shape, self._telemetry, clock())
        self._opened = 0
        self.row = asyncio.Lock()
        """Held by the session that runs."""

    @property
    def model(self) -> str:
        return self._model

    @property
    def spec(self) -> ModelSpec:
        return self._executor.spec

    @property
    def context(self) -> int:
        return self._executor.context

    async def open(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
        claim: Claim = ANYBODY,
    ) -> SoloSession:
        """A session that begins to run when it is iterated and the one before it has ended."""
        self._opened += 1
        return SoloSession(
            self, OpenSession(str(self._opened), MICRO_BATCH, tuple(prompt), max_tokens, sampling, tuple(stop_ids))
        )

    def health(self) -> Health:
        return Health(True, 1, 1, "ready")

    def load(self) -> ServerLoad:
        return ServerLoad(1, int(self.row.locked()), {}, None)

    def telemetry(self) -> Mapping[str, Telemetry]:
        return {DEVICE: self._telemetry.snapshot()}

    def splits(self) -> SplitReport | None:
        return None

    def status(self) -> dict[str, object]:
        """Empty: there is no cluster to speak of."""
        return {}

    def begin(self, opening: OpenSession) -> list[Effect]:
        """Opens the session in a micro-batch of its own, so that nothing a cancelled one left behind is in the way."""
        now = self._clock()
        everything = StageAddress(DEVICE, "", "", 0, self.spec.num_layers)
        opened = OpenMicroBatch(
            micro_batch=MICRO_BATCH,
            epoch=int(opening.session),
            rows=1,
            chunk=min(PREFILL_CHUNK_TOKENS, self.context),
            codec="fp32",
            stages=(everything,),
        )
        return [*self._stage.open_micro_batch(opened), *self._stage.open_session(opening, now)]

    def advance(self) -> list[Effect] | None:
        """One run of all layers, and what follows from it; None when there is nothing to run."""
        from agent import step

        job = self._stage.next_job(self._clock())
        if job is None:
            return None
        outcome = step.run(job, self._executor, self._clock)
        return self._stage.on_computed(job, outcome, self._clock())

    def close(self) -> None:
        """Gives the memory back."""
        self._executor.close()


class SoloSession:
    """The Generation of one session: every wait for a token is one run."""

    def __init__(self, engine: SoloEngine, opening: OpenSession) -> None:
        self._engine = engine
        self._opening = opening
        self._tokens: deque[TokenEvent] = deque()
        self._reason: EndReason | None = None
        self._failure: EngineError | None = None
        self._has_row = False

    @property
    def reason(self) -> EndReason | None:
        return self._reason

    def cancel(self) -> None:
        if self._reason is None and self._failure is None:
            self._end("cancelled")

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        if not self._has_row and self._is_open():
            await self._engine.row.acquire()
            self._has_row = True
            if self._is_open():
                self._carry_out(self._engine.begin(self._opening))
            else:
                self._leave_row()
        while not self._tokens and self._is_open():
            # The loop gets its turn between two runs: a signal or another session's cancel.
            await asyncio.sleep(0)
            if not self._is_open():
                continue
            effects = self._engine.advance()
            if effects is not None:
                self._carry_out(effects)
            else:
                self._fail("internal_error", "the stage neither runs nor ends the session")
        if self._tokens:
            return self._tokens.popleft()
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    def _is_open(self) -> bool:
        return self._reason is None and self._failure is None

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Emit):
                self._hear(effect.message)
            elif isinstance(effect, Notify) and isinstance(effect.message, Failed):
                self._fail(effect.message.code, effect.message.detail)

    def _hear(self, event: FromSource) -> None:
        if isinstance(event, TokenEvent) and event.session == self._opening.session:
            if event.token not in self._opening.stop_ids:
                self._tokens.append(event)
        elif isinstance(event, SessionEnded) and event.session == self._opening.session:
            self._end(event.reason)
        elif isinstance(event, SessionFailed) and event.session == self._opening.session:
            self._fail(event.code, event.detail)

    def _end(self, reason: EndReason) -> None:
        self._reason = reason
        self._leave_row()

    def _fail(self, code: str, detail: str) -> None:
        if self._is_open():
            self._failure = EngineError(code, detail)
        self._leave_row()

    def _leave_row(self) -> None:
        if self._has_row:
            self._has_row = False
            self._engine.row.release()
