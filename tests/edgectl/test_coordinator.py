"""The coordinator as an Engine: real bytes both ways, agents in memory at the other end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Union

import pytest

from agent.wire.message import Message
from agent.wire.messages import (
    CancelSession,
    CloseMicroBatch,
    Hello,
    OpenSession,
    Sampling,
    SessionFailed,
    ToAgent,
    TokenEvent,
    ToSource,
    decode,
    encode,
)
from edgectl.cluster import Inbound
from edgectl.coordinator import Coordinator, Reporter, SessionReader
from edgectl.effects import Effect, Notice, Ready
from edgectl.engine import EngineError
from tests.fakes.fake_agents import NAMES, Scene
from tests.fakes.fake_engine import FakeEngine, Script

SPEC = FakeEngine(lambda _: Script()).spec


class Wire(Scene):
    """A ControlServer whose agents obey every message at once and answer in bytes."""

    def __init__(self, *, tokens_at_once: int = 64) -> None:
        super().__init__()
        self.tokens_at_once = tokens_at_once
        """The source makes this many tokens of a session as soon as it opens."""
        self.inbox: asyncio.Queue[tuple[bytes, str, bytes]] = asyncio.Queue()
        self.seen: list[Message] = []
        self.changed = asyncio.Event()

    def say(self, name: str, message: Inbound, *, worker: bool = False) -> list[Effect]:
        agent = self.agents[name]
        self.inbox.put_nowait((agent.worker_origin if worker else agent.origin, name, encode(message)))
        return []

    async def receive(self) -> tuple[bytes, str, bytes]:
        return await self.inbox.get()

    async def send(self, origin: bytes, data: bytes) -> bool:
        message: Message = decode(data, Union[ToAgent, ToSource])
        self.seen.append(message)
        self.obey(self.agents[origin.decode().split(":")[0]], message)
        if isinstance(message, OpenSession):
            for _ in range(min(self.tokens_at_once, message.max_tokens)):
                self.token()
        self.changed.set()
        return True

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 10)


class Noting(Reporter):
    def __init__(self, wire: Wire) -> None:
        self.notices: list[str] = []
        self._wire = wire

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice.detail)
        self._wire.changed.set()

    def ready(self, ready: Ready) -> None:
        self._wire.changed.set()


@asynccontextmanager
async def running(wire: Wire) -> AsyncIterator[Coordinator]:
    """A coordinator on the wire, ready; time stands still."""
    coordinator = Coordinator(wire.cluster, SPEC, 64, start=5, clock=lambda: 0.0, reporter=Noting(wire))
    task = asyncio.create_task(coordinator.run(wire))
    try:
        wire.connect(*NAMES)
        await wire.until(lambda: coordinator.health().ready)
        yield coordinator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def open_session(coordinator: Coordinator, max_tokens: int, stop_ids: tuple[int, ...] = ()) -> SessionReader:
    return await coordinator.open((1, 2), max_tokens, Sampling(), stop_ids)


async def read(reader: SessionReader) -> list[int]:
    return [event.token async for event in reader]


def test_tokens_come_in_order_and_end_with_a_reason() -> None:
    async def run() -> None:
        async with running(Wire()) as coordinator:
            reader = await open_session(coordinator, 3)
            assert reader.reason is None
            assert await read(reader) == [100, 101, 102]
            assert reader.reason == "length"
            reader.cancel()
            assert reader.reason == "length"

    asyncio.run(run())


def test_a_stop_id_is_not_part_of_the_answer() -> None:
    async def run() -> None:
        async with running(Wire()) as coordinator:
            assert await read(await open_session(coordinator, 3, stop_ids=(101,))) == [100, 102]

    asyncio.run(run())


def test_sessions_of_one_start_have_names_of_their_own() -> None:
    async def run() -> None:
        wire = Wire()
        async with running(wire) as coordinator:
            for _ in range(3):
                await read(await open_session(coordinator, 1))
        opened = [message.session for message in wire.seen if isinstance(message, OpenSession)]
        assert opened == ["5-1", "5-2", "5-3"]

    asyncio.run(run())


def test_cancelling_tells_the_source_and_lets_the_next_one_run() -> None:
    async def run() -> None:
        wire = Wire(tokens_at_once=1)
        async with running(wire) as coordinator:
            first, second = await open_session(coordinator, 5), await open_session(coordinator, 1)
            tokens = aiter(first)
            assert (await anext(tokens)).token == 100
            first.cancel()
            first.cancel()
            with pytest.raises(StopAsyncIteration):
                await anext(tokens)
            assert first.reason == "cancelled"
            assert await read(second) == [100]
        assert [message for message in wire.seen if isinstance(message, CancelSession)] == [CancelSession("5-1")]

    asyncio.run(run())


def test_a_failed_session_raises_its_code() -> None:
    async def run() -> None:
        wire = Wire(tokens_at_once=1)
        async with running(wire) as coordinator:
            reader = await open_session(coordinator, 5)
            tokens = aiter(reader)
            await anext(tokens)
            wire.say("a", SessionFailed("5-1", "answer_timeout", "a → b: step 3 is 10.2 s late"), worker=True)
            with pytest.raises(EngineError, match="a → b") as failed:
                await anext(tokens)
            assert failed.value.code == "answer_timeout"
            assert reader.reason is None

    asyncio.run(run())


def test_bytes_that_are_no_message_cost_nothing() -> None:
    async def run() -> None:
        wire = Wire()
        async with running(wire) as coordinator:
            for data in (b"", b"\xc1", b"\x81\xa4kind\xa7unknown", b"\xff" * 100):
                wire.inbox.put_nowait((b"a:0", "a", data))
            assert await read(await open_session(coordinator, 2)) == [100, 101]

    asyncio.run(run())


def test_nothing_opens_before_the_devices_are_ready_or_after_the_end() -> None:
    async def run() -> None:
        wire = Wire()
        coordinator = Coordinator(wire.cluster, SPEC, 64, start=5, clock=lambda: 0.0)
        with pytest.raises(EngineError, match="no_agent"):
            await open_session(coordinator, 1)
        async with running(wire) as ready:
            waiting = [await open_session(ready, 60) for _ in range(2)]
            await ready.shut_down()
            for reader in waiting:
                await read(reader)
            with pytest.raises(EngineError, match="shutting_down"):
                await open_session(ready, 1)
        (number,) = {batch.number for batch in wire.cluster.deployment.micro_batches}
        last = [message for message in wire.seen if isinstance(message, CloseMicroBatch)][-len(NAMES) :]
        assert last == [CloseMicroBatch(number)] * len(NAMES)

    asyncio.run(run())


def test_what_the_engine_says_of_itself() -> None:
    async def run() -> None:
        async with running(Wire()) as coordinator:
            assert (coordinator.model, coordinator.context, coordinator.spec) == ("m", 64, SPEC)
            assert coordinator.status()["phase"] == "ready"
            assert coordinator.telemetry() == {}
            assert coordinator.health().devices_connected == 3

    asyncio.run(run())


def test_a_version_that_differs_is_reported_to_the_person() -> None:
    async def run() -> None:
        wire = Wire()
        coordinator = Coordinator(wire.cluster, SPEC, 64, start=5, clock=lambda: 0.0, reporter=(noting := Noting(wire)))
        task = asyncio.create_task(coordinator.run(wire))
        wire.obey = lambda agent, message: None  # type: ignore[method-assign]  # the agent hears it is rejected
        hello: Hello = wire.agents["a"].hello(protocol=77)
        wire.say("a", hello)
        await wire.until(lambda: any("protocol 77" in notice for notice in noting.notices))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_task_that_fails_ends_the_coordinator() -> None:
    class Broken(Wire):
        async def receive(self) -> tuple[bytes, str, bytes]:
            raise OSError("the socket is gone")

    async def run() -> None:
        wire = Broken()
        with pytest.raises(OSError, match="the socket is gone"):
            await Coordinator(wire.cluster, SPEC, 64, start=5, clock=lambda: 0.0).run(wire)

    asyncio.run(run())


def test_token_events_carry_their_log_probabilities() -> None:
    reader = SessionReader(OpenSession("s", 1, (1,), 4, Sampling()), lambda session: None)
    event = TokenEvent("s", 0, 7, -0.5, ((7, -0.5), (8, -1.5)))
    reader.deliver(event)

    async def first() -> TokenEvent:
        return await anext(aiter(reader))

    assert asyncio.run(first()) == event
