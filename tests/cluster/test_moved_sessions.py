"""Two real agents, a split that moves under a running session, and links that stop or break meanwhile.

Whatever happens, the tokens are those of one process that is cut where the source says the session was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from agent.compute.executor import Executor
from agent.compute.model_digest import model_digest
from agent.wire.addresses import LinkShape, PeerKey, StageAddress
from agent.wire.message import Message
from agent.wire.messages import (
    PROTOCOL_VERSION,
    CloseMicroBatch,
    CoordinatorAlive,
    Load,
    Loaded,
    MicroBatchOpened,
    MoveSplit,
    OpenMicroBatch,
    OpenSession,
    Sampling,
    SessionEnded,
    SessionMoved,
    SplitKept,
    SplitMoved,
    TokenEvent,
    Welcome,
)
from edgectl.adaptive_bench.damage_replay import RecordedSession, load_all_layers, replay
from edgectl.model_source import locate_model
from edgectl.planning import ServingOptions
from planner.channel import Channel, ChannelState
from tests.fakes.agent_process import MODELS, AgentProcess, Coordinator, agent
from tests.fakes.tcp_proxy import TcpProxy

pytestmark = pytest.mark.cluster

MODEL = "wiki-32l"
POINTS = (4, 8, 16, 24)
BEGIN = 16
PROMPT = tuple(range(100, 160))
TOKENS = 90
CONTEXT = 256
SAMPLING = Sampling(seed=5, temperature=0.8)
FADING = Channel(
    (ChannelState(loss=0.05, sigma=0.2), ChannelState(), ChannelState(loss=0.2)),
    seed=9,
    coherence_tokens=7,
    concealment="rescale",
)
LATENCY_MS = 4.0
"""Of both directions, emulated: a token takes a while, so that what is done to it happens in its middle."""


@dataclass
class Pair:
    """A route of two agents that reach each other through proxies only, with one open micro-batch."""

    coordinator: Coordinator
    stages: tuple[StageAddress, StageAddress]
    proxies: list[TcpProxy]
    micro_batch: int = 0

    async def tokens(self, session: str, count: int) -> list[int]:
        found = []
        for _ in range(count):
            event = await self.coordinator.next(TokenEvent)
            assert event.session == session
            found.append(event.token)
            await self.coordinator.tell_worker("d1", CoordinatorAlive())
        return found

    async def open(self, session: str, prompt: tuple[int, ...] = PROMPT, tokens: int = TOKENS) -> None:
        await self.coordinator.tell_worker("d1", OpenSession(session, self.micro_batch, prompt, tokens, SAMPLING))

    async def move(self, split: int) -> None:
        await self.coordinator.tell_worker("d1", MoveSplit(self.micro_batch, split))

    async def begin(self) -> None:
        """A new micro-batch, cut where the last one began."""
        self.micro_batch += 1
        opening = OpenMicroBatch(self.micro_batch, 1, 2, 32, "fp16", self.stages, split_points=POINTS)
        for stage in self.stages:
            await self.coordinator.tell(stage.device, opening)
        for stage in self.stages:
            await self.coordinator.next(MicroBatchOpened, stage.device)
        await self.coordinator.tell_worker("d1", CoordinatorAlive())

    async def end(self) -> None:
        """Nothing of this micro-batch meets the next one."""
        for stage in self.stages:
            await self.coordinator.tell(stage.device, CloseMicroBatch(self.micro_batch))
        self.coordinator.forget(Message)

    async def schedule(self, count: int) -> tuple[tuple[int, int], ...]:
        """The next entries, as the source tells them."""
        moved = [await self.coordinator.next(SessionMoved) for _ in range(count)]
        return tuple((event.position, event.split) for event in moved)


@pytest.fixture(scope="module")
def whole() -> Iterator[Executor]:
    executor = load_all_layers(locate_model(str(MODELS / MODEL)), ServingOptions(), CONTEXT, POINTS)
    yield executor
    executor.close()


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[Pair]:
    """Both agents with their layers, and no micro-batch yet."""
    digest = model_digest(MODELS / MODEL, directory)
    with closing(Coordinator()) as coordinator, ExitStack() as running:
        agents: list[AgentProcess] = []
        for name in ("d1", "d2"):
            one = running.enter_context(agent(directory / name, name, coordinator.endpoint, coordinator.keys.public))
            coordinator.allowed.allow(one.public_key, name)
            agents.append(one)
        await coordinator.welcome(*agents)
        proxies = [running.enter_context(TcpProxy(coordinator.hellos[one.name].data_endpoint)) for one in agents]
        peers = tuple(PeerKey(one.name, one.public_key) for one in agents)
        stages = (
            StageAddress("d1", proxies[0].endpoint, agents[0].public_key, 0, BEGIN),
            StageAddress("d2", proxies[1].endpoint, agents[1].public_key, BEGIN, 32, FADING),
        )
        for one, other, resident in zip(agents, reversed(agents), ((0, 24), (4, 32)), strict=True):
            links = (LinkShape(other.name, latency_ms=LATENCY_MS),)
            await coordinator.tell(one.name, Welcome(PROTOCOL_VERSION, "0.0.0", peers, links))
            load = Load(MODEL, digest, (resident,), "fp32", 32, "fp16", 2, CONTEXT, cuts=POINTS)
            await coordinator.tell(one.name, load)
        for one in agents:
            await coordinator.next(Loaded, one.name)
        yield Pair(coordinator, stages, proxies)


class Rehearsal:
    """The two agents, and the loop that the test's end of their sockets lives in."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._running = started(directory)
        self.pair = self.loop.run_until_complete(self._running.__aenter__())

    def play(self, test: Callable[[Pair], Awaitable[None]]) -> None:
        """In a micro-batch of its own."""

        async def everything() -> None:
            await self.pair.begin()
            try:
                await test(self.pair)
            finally:
                await self.pair.end()

        self.loop.run_until_complete(everything())

    def close(self) -> None:
        self.loop.run_until_complete(self._running.__aexit__(None, None, None))
        self.loop.close()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    rehearsal = Rehearsal(tmp_path_factory.mktemp("moved"))
    yield rehearsal
    rehearsal.close()


def offline(whole: Executor, schedule: tuple[tuple[int, int], ...], prompt: tuple[int, ...] = PROMPT) -> list[int]:
    recorded = RecordedSession(prompt=prompt, max_tokens=TOKENS, sampling=SAMPLING, schedule=schedule, channel=FADING)
    return list(replay(whole, recorded))


async def calm(pair: Pair) -> None:
    """Nothing happens to the links."""


async def cut(pair: Pair) -> None:
    """Every connection ends, and is made again."""
    for proxy in pair.proxies:
        proxy.cut()


async def stall(pair: Pair) -> None:
    """Nothing passes for half a second."""
    for proxy in pair.proxies:
        proxy.stall()
    await asyncio.sleep(0.5)
    for proxy in pair.proxies:
        proxy.resume()


@pytest.mark.parametrize("trouble", [calm, cut, stall])
def test_a_session_moves_and_moves_back(
    rehearsal: Rehearsal, whole: Executor, trouble: Callable[[Pair], Awaitable[None]]
) -> None:
    async def everything(two: Pair) -> None:
        await two.open("s")
        tokens = await two.tokens("s", 20)
        await two.move(24)
        await trouble(two)
        tokens += await two.tokens("s", 30)
        await two.move(4)
        await trouble(two)
        tokens += await two.tokens("s", TOKENS - 50)
        assert await two.coordinator.next(SessionEnded) == SessionEnded("s", "length", TOKENS)
        moved = [await two.coordinator.next(SplitMoved) for _ in range(2)]
        assert [each.split for each in moved] == [24, 4]
        assert all(each.bytes > 0 for each in moved)
        schedule = await two.schedule(3)
        assert [split for _, split in schedule] == [16, 24, 4]
        assert schedule[0][0] == 0
        assert tokens == offline(whole, schedule)

    rehearsal.play(everything)


def test_two_sessions_move_together_and_a_third_begins_there(rehearsal: Rehearsal, whole: Executor) -> None:
    async def everything(two: Pair) -> None:
        prompts = {"s": PROMPT, "t": PROMPT[::-1], "u": PROMPT[5:45]}
        tokens: dict[str, list[int]] = {name: [] for name in prompts}
        schedules: dict[str, list[tuple[int, int]]] = {name: [] for name in prompts}
        for name in ("s", "t"):
            await two.open(name, prompts[name])
        asked = has_third = False
        while any(len(tokens[name]) < TOKENS for name in prompts):
            event = await two.coordinator.next(TokenEvent)
            tokens[event.session].append(event.token)
            await two.coordinator.tell_worker("d1", CoordinatorAlive())
            if not asked and len(tokens["t"]) >= 10:
                asked = True
                await two.move(8)
            if len(tokens[event.session]) == TOKENS and not has_third:
                has_third = True
                await two.open("u", prompts["u"])
        for _ in range(5):
            moved = await two.coordinator.next(SessionMoved)
            schedules[moved.session].append((moved.position, moved.split))
        assert [split for _, split in schedules["s"]] == [16, 8]
        assert schedules["u"] == [(0, 8)]
        for name, prompt in prompts.items():
            assert tokens[name] == offline(whole, tuple(schedules[name]), prompt), name

    rehearsal.play(everything)


def test_a_split_nobody_has_is_kept_from_and_the_session_goes_on(rehearsal: Rehearsal, whole: Executor) -> None:
    async def everything(two: Pair) -> None:
        await two.open("s")
        tokens = await two.tokens("s", 10)
        await two.move(20)
        kept = await two.coordinator.next(SplitKept)
        assert (kept.split, kept.code) == (20, "unknown_split")
        tokens += await two.tokens("s", TOKENS - 10)
        assert tokens == offline(whole, await two.schedule(1))

    rehearsal.play(everything)


def test_a_reader_hardly_notices_a_move(rehearsal: Rehearsal) -> None:
    """The longest gap between tokens against the others'; the bound leaves room for a machine with other work."""

    async def everything(two: Pair) -> None:
        await two.open("s")
        arrived_s = []
        for number in range(TOKENS):
            await two.tokens("s", 1)
            arrived_s.append(time.monotonic())
            if number in {25, 55}:
                await two.move(24 if number == 25 else 4)
        gaps_ms = sorted(1e3 * (after - before) for before, after in pairwise(arrived_s))
        print(f"median {gaps_ms[len(gaps_ms) // 2]:.1f} ms, longest {gaps_ms[-1]:.1f} ms")
        assert gaps_ms[-1] < 3 * gaps_ms[len(gaps_ms) // 2] + 500

    rehearsal.play(everything)
