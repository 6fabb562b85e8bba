"""An engine that answers from a script: the tokens of a text, or what the test says, one event-loop turn apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.wire.messages import EndReason, Sampling, Telemetry, TokenEvent
from edgectl.adaptive.report import SplitReport
from edgectl.engine import ANYBODY, Claim, EngineError, Health, ServerLoad
from planner.model_spec import ModelSpec, parse_config

MODEL_DIR = Path(__file__).parents[2] / "examples" / "models" / "wiki-32l"


@dataclass
class Opening:
    """What the HTTP side asked for."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_ids: tuple[int, ...]
    claim: Claim = ANYBODY


@dataclass
class Script:
    """How a session goes: its tokens (then eos), and how it may go wrong."""

    tokens: Sequence[int] = ()
    fail_after: int | None = None
    """This many tokens, then EngineError(`code`)."""
    code: str = "device_lost"
    hold_after: int | None = None
    """This many tokens, then nothing until the test sets `release` or the session is cancelled."""
    logprob: Callable[[int, int], float] = lambda index, token: -0.5
    top: Callable[[int, int], tuple[tuple[int, float], ...]] = lambda index, token: ()


class FakeGeneration:
    """Follows its script; `max_tokens` and stop ids are honoured as a source would."""

    def __init__(self, engine: FakeEngine, opening: Opening, script: Script) -> None:
        self.reason: EndReason | None = None
        self.cancelled = asyncio.Event()
        self.sent = 0
        self._engine = engine
        self._opening = opening
        self._script = script

    def cancel(self) -> None:
        if self.reason is None:
            self.cancelled.set()
            self._engine.changed.set()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        for index, token in enumerate(self._script.tokens):
            if index == self._script.hold_after:
                await self._engine.hold(self.cancelled)
            await asyncio.sleep(0)
            if self.cancelled.is_set():
                self.reason = "cancelled"
                return
            if index == self._script.fail_after:
                raise EngineError(self._script.code, "device /dev/secret is gone")
            if token in self._opening.stop_ids:
                break
            self.sent += 1
            yield self._event(index, token)
            if index + 1 == self._opening.max_tokens:
                self.reason = "length"
                return
        self.reason = "stop"

    def _event(self, index: int, token: int) -> TokenEvent:
        if not self._opening.sampling.logprobs:
            return TokenEvent("s", index, token)
        return TokenEvent("s", index, token, self._script.logprob(index, token), self._script.top(index, token))


@dataclass
class FakeEngine:
    """`script` decides each session from what was asked; `refuse` is raised by `open`."""

    script: Callable[[Opening], Script]
    context: int = 256
    model: str = "wiki-32l"
    spec: ModelSpec = field(default_factory=lambda: parse_config(json.loads((MODEL_DIR / "config.json").read_text())))
    refuse: EngineError | None = None
    ready: bool = True
    openings: list[Opening] = field(default_factory=list)
    generations: list[FakeGeneration] = field(default_factory=list)
    server_load: ServerLoad = field(default_factory=lambda: ServerLoad(4, 0, {}, 0.0))
    device_telemetry: dict[str, Telemetry] = field(default_factory=dict)
    split_report: SplitReport | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a session is opened or cancelled; for `until`."""

    async def open(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
        claim: Claim = ANYBODY,
    ) -> FakeGeneration:
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        opening = Opening(tuple(prompt), max_tokens, sampling, tuple(stop_ids), claim)
        self.openings.append(opening)
        generation = FakeGeneration(self, opening, self.script(opening))
        self.generations.append(generation)
        self.changed.set()
        return generation

    async def hold(self, cancelled: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(self.release.wait()), asyncio.ensure_future(cancelled.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition on openings and cancellations."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def health(self) -> Health:
        return Health(self.ready, 3 if self.ready else 1, 3, "ready" if self.ready else "waiting for devices")

    def load(self) -> ServerLoad:
        return self.server_load

    def splits(self) -> SplitReport | None:
        return self.split_report

    def telemetry(self) -> Mapping[str, Telemetry]:
        return self.device_telemetry

    def status(self) -> dict[str, object]:
        return {"model": self.model, "devices": []}
