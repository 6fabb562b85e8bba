"""Agents driven without a coordinator's choices: a benchmark says which micro-batch a session runs in.

Two things that run the same sessions, with tokens stamped as they arrive: agents as real processes over real sockets,
and one process that runs the same stage and executor in a loop of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from agent import step
from agent.compute.model_digest import model_digest
from agent.config import AgentConfig
from agent.device.telemetry import TelemetryRecorder
from agent.effects import Emit
from agent.loader import load_model
from agent.place import ModelShape
from agent.stage import Stage
from agent.wire import messages
from agent.wire.addresses import LinkShape, PeerKey, StageAddress
from agent.wire.message import Message
from agent.wire.messages import (
    CoordinatorAlive,
    Failed,
    FromAgent,
    FromSource,
    Hello,
    Load,
    Loaded,
    MicroBatchClosed,
    MicroBatchOpened,
    MoveSplit,
    OpenMicroBatch,
    OpenSession,
    SessionEnded,
    SessionFailed,
    SessionMoved,
    SplitKept,
    SplitMoved,
    TokenEvent,
    Welcome,
    WorkerHello,
)
from edgectl.config import load_config
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from edgectl.profiling_run import open_control
from planner.channel import Channel
from planner.types import Codec, LayerRange, Pipeline, Quantization

ALIVE_S = 1.0
PREFILL_CHUNK = 128
CACHE = Path(tempfile.gettempdir()) / "edgectl-bench-cache"


class Heard:
    """Tokens of sessions and when they came."""

    def __init__(self) -> None:
        self.arrivals_s: defaultdict[str, list[float]] = defaultdict(list)
        self.tokens: defaultdict[str, list[int]] = defaultdict(list)
        self.opened_s: dict[str, float] = {}
        self.ended: set[str] = set()
        self.splits: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """Of each session: from which position on it was cut where."""
        self.moves: list[tuple[float, SplitMoved | SplitKept]] = []
        """What became of moves, and when that was heard."""

    def hear(self, message: object) -> None:
        match message:
            case TokenEvent(name, _, token):
                self.arrivals_s[name].append(time.monotonic())
                self.tokens[name].append(token)
            case SessionEnded(name):
                self.ended.add(name)
            case SessionMoved(name, position, split):
                self.splits[name].append((position, split))
            case SplitMoved() | SplitKept():
                self.moves.append((time.monotonic(), message))
            case SessionFailed(name, code, detail):
                raise RuntimeError(f"session {name}: {code}: {detail}")


class DirectAgents(Heard):
    """A route of agents on this machine. Use inside `with Processes(directory)`; made in a running event loop."""

    def __init__(self, directory: Path, processes: Processes, model: Path, threads: Sequence[int]) -> None:
        super().__init__()
        self._model = model
        self._cluster = LocalCluster(directory, processes)
        self._names = [f"device-{number}" for number in range(len(threads))]
        for name, count in zip(self._names, threads, strict=True):
            settings = {"threads": count, "log_level": "warning", "cache_dir": str(CACHE)}
            self._cluster.add_device(name, model.parent, settings)
        self._processes = processes
        self._supervisors: dict[str, bytes] = {}
        self._hellos: dict[str, Hello] = {}
        self._source = b""
        self._came = asyncio.Event()
        self._notices: list[object] = []
        self._stages: tuple[StageAddress, ...] = ()
        self._epoch = 0
        self._split_points: tuple[int, ...] = ()
        self.codec: Codec = "fp16"

    async def start(
        self,
        load: Load,
        cuts: Sequence[int],
        num_layers: int,
        *,
        split_points: tuple[int, ...] = (),
        links: Mapping[str, tuple[LinkShape, ...]] | None = None,
        channel: Channel | None = None,
    ) -> None:
        """`split_points` are where the first cut may move, `links` per device what is emulated, `channel` what happens
        on the first of them."""
        self._split_points = split_points
        config = load_config(self._cluster.config, {})
        self._server = open_control(config)
        keys = {device.name: device.key for device in config.devices}
        for name in self._names:
            self._cluster.start_device(name)
        self._listening = asyncio.create_task(self._listen())
        self._alive = asyncio.create_task(self._stay_alive())
        await self._until(lambda: len(self._hellos) == len(keys) and bool(self._source))
        peers = tuple(PeerKey(name, key) for name, key in keys.items())
        edges = [0, *cuts, num_layers]
        for index, name in enumerate(self._names):
            await self._tell(name, Welcome(messages.PROTOCOL_VERSION, "0", peers, (links or {}).get(name, ())))
            resident = (edges[index], edges[index + 1])
            if split_points and index < 2:
                bounds = (*resident, *split_points)
                resident = (0, max(split_points)) if index == 0 else (min(split_points), max(bounds))
            await self._tell(name, Load(**{**fields_of(load), "resident": (resident,), "cuts": split_points}))
        await self._until(lambda: self._count(Loaded) == len(keys))
        self._stages = tuple(
            StageAddress(
                name,
                self._hellos[name].data_endpoint,
                keys[name],
                edges[i],
                edges[i + 1],
                channel if i == 1 else None,
            )
            for i, name in enumerate(self._names)
        )

    async def open_micro_batches(self, count: int, rows: int, pipeline: Pipeline = "no-bubbles") -> None:
        """In place of those that were open; all rows are free."""
        self._epoch += 1
        self._notices.clear()
        for number in range(16):
            for name in self._names:
                await self._tell(name, messages.CloseMicroBatch(number))
        await self._until(lambda: self._count(MicroBatchClosed) == 16 * len(self._names))
        for number in range(count):
            opening = OpenMicroBatch(
                number, self._epoch, rows, PREFILL_CHUNK, self.codec, self._stages, pipeline, self._split_points
            )
            for name in self._names:
                await self._tell(name, opening)
        await self._until(lambda: self._count(MicroBatchOpened) == count * len(self._names))

    async def open_session(self, opened: OpenSession) -> None:
        self.opened_s[opened.session] = time.monotonic()
        await self._server.send(self._source, messages.encode(opened))

    async def move_split(self, micro_batch: int, split: int) -> None:
        """Ask for it; `moves` says in the end what became of it."""
        await self._server.send(self._source, messages.encode(MoveSplit(micro_batch, split)))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until what was heard satisfies it."""
        await self._until(condition)

    async def until_ended(self, names: Sequence[str]) -> None:
        await self._until(lambda: set(names) <= self.ended)

    async def stop(self) -> None:
        for task in (self._listening, self._alive):
            task.cancel()
        await asyncio.gather(self._listening, self._alive, return_exceptions=True)
        self._server.close()

    def _count(self, kind: type) -> int:
        return sum(isinstance(notice, kind) for notice in self._notices)

    async def _until(self, condition: Any) -> None:
        while not condition():
            self._processes.check()
            if self._listening.done():
                self._listening.result()
            self._came.clear()
            if not condition():
                await asyncio.wait([asyncio.create_task(self._came.wait())], timeout=5)

    async def _tell(self, name: str, message: Message) -> None:
        await self._server.send(self._supervisors[name], messages.encode(message))

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_S)
            if self._source:
                await self._server.send(self._source, messages.encode(CoordinatorAlive()))

    async def _listen(self) -> None:
        while True:
            origin, device, data = await self._server.receive()
            message: Any = messages.decode(data, Union[FromAgent, FromSource])
            match message:
                case Hello():
                    self._supervisors[device], self._hellos[device] = origin, message
                case WorkerHello() if device == self._names[0]:
                    self._source = origin
                case Failed():
                    raise RuntimeError(f"{device}: {message}")
                case TokenEvent() | SessionEnded() | SessionFailed() | SessionMoved() | SplitMoved() | SplitKept():
                    self.hear(message)
                case Loaded() | MicroBatchOpened() | MicroBatchClosed():
                    self._notices.append(message)
            self._came.set()


class OneProcess(Heard):
    """The same stage and executor in a loop, without sockets: what a single device would do."""

    def __init__(self, load: Load, model: Path, threads: int) -> None:
        super().__init__()
        config = AgentConfig(name="one", models_dir=model.parent, cache_dir=CACHE, threads=threads, provider="cpu")
        self._executor = load_model(load, config, "cpu", lambda *_: None).executor
        spec = self._executor.spec
        shape = ModelShape(
            spec.num_layers, spec.hidden_size, load.slots, load.context, (LayerRange(0, spec.num_layers),)
        )
        self._stage = Stage("one", shape, TelemetryRecorder(), time.monotonic())

    def open_micro_batches(self, count: int, rows: int) -> None:
        self._stage.close_all()
        stages = (StageAddress("one", "", "", 0, self._executor.spec.num_layers),)
        for number in range(count):
            self._perform(self._stage.open_micro_batch(OpenMicroBatch(number, 1, rows, PREFILL_CHUNK, "fp16", stages)))

    def run(self, sessions: Sequence[OpenSession]) -> None:
        """All of them, to their end."""
        for opened in sessions:
            self.opened_s[opened.session] = time.monotonic()
            self._perform(self._stage.open_session(opened, time.monotonic()))
        while (job := self._stage.next_job(time.monotonic())) is not None:
            outcome = step.run(job, self._executor, time.monotonic)
            self._perform(self._stage.on_computed(job, outcome, time.monotonic()))

    def _perform(self, effects: Sequence[object]) -> None:
        for effect in effects:
            if isinstance(effect, Emit):
                self.hear(effect.message)


def load_request(
    model: Path, quantization: Quantization, *, slots: int, context: int, num_layers: int, block_size: int = 32
) -> Load:
    digest = model_digest(model, CACHE)
    return Load(model.name, digest, ((0, num_layers),), quantization, block_size, "fp16", slots, context)


def fields_of(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}
