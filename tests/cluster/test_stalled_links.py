"""A link between two agents that stops for 5 s and comes back: the session goes on within a second, with its tokens."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from agent.compute.model_digest import model_digest
from agent.wire.addresses import LinkShape, PeerKey, StageAddress
from agent.wire.messages import (
    PROTOCOL_VERSION,
    CoordinatorAlive,
    Load,
    Loaded,
    MicroBatchOpened,
    OpenMicroBatch,
    OpenSession,
    Sampling,
    SessionEnded,
    TokenEvent,
    Welcome,
)
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from edgectl.netns import Namespaces, NamespacesUnavailable, Uplink
from edgectl.netns_bench import links_toml, move_coordinator
from tests.fakes.agent_process import MODELS, AgentProcess, Coordinator, agent
from tests.fakes.tcp_proxy import TcpProxy

pytestmark = pytest.mark.cluster

MODEL = "wiki-32l"
PROMPT = tuple(range(100, 120))
TOKENS = 90
SAMPLING = Sampling(seed=5, temperature=0.8)
STALL_S = 5.0
RESUMES_S = 1.0
"""What the links are for."""
LATENCY_MS = 15.0
"""Of both directions, emulated: a token takes 30 ms, so that a session outlives the moment its link stalls."""


async def open_route(
    coordinator: Coordinator, agents: list[AgentProcess], proxies: list[TcpProxy], digest: str
) -> None:
    """Two stages that reach each other through the proxies only, over emulated links."""
    peers = tuple(PeerKey(one.name, one.public_key) for one in agents)
    stages = tuple(
        StageAddress(one.name, proxy.endpoint, one.public_key, 16 * index, 16 * index + 16)
        for index, (one, proxy) in enumerate(zip(agents, proxies, strict=True))
    )
    for one, other, stage in zip(agents, reversed(agents), stages, strict=True):
        links = (LinkShape(other.name, latency_ms=LATENCY_MS),)
        await coordinator.tell(one.name, Welcome(PROTOCOL_VERSION, "0.0.0", peers, links))
        resident = ((stage.start, stage.stop),)
        await coordinator.tell(one.name, Load(MODEL, digest, resident, "fp32", 32, "fp16", 1, 128))
    for one in agents:
        await coordinator.next(Loaded, one.name)
    for one in agents:
        await coordinator.tell(one.name, OpenMicroBatch(1, 1, 1, 32, "fp16", stages))
    for one in agents:
        await coordinator.next(MicroBatchOpened, one.name)


async def tokens_of(coordinator: Coordinator, count: int) -> list[int]:
    return [(await coordinator.next(TokenEvent)).token for _ in range(count)]


async def stalled_session(coordinator: Coordinator, proxies: list[TcpProxy], name: str) -> tuple[list[int], float]:
    """Tokens of a session in whose middle the links stall, and how long after their return the next one came."""
    await coordinator.tell_worker("d1", OpenSession(name, 1, PROMPT, TOKENS, SAMPLING))
    tokens = await tokens_of(coordinator, 20)
    for proxy in proxies:
        proxy.stall()
    stalled_s = time.monotonic()
    came_s = stalled_s
    while time.monotonic() < stalled_s + STALL_S:
        await coordinator.tell_worker("d1", CoordinatorAlive())
        try:
            tokens.append((await asyncio.wait_for(coordinator.next(TokenEvent), 0.25)).token)
            came_s = time.monotonic()
        except asyncio.TimeoutError:
            pass
    assert came_s - stalled_s < 1.0, "it did stall"
    for proxy in proxies:
        proxy.resume()
    returned_s = time.monotonic()
    tokens += await tokens_of(coordinator, 1)
    late_s = time.monotonic() - returned_s
    return tokens + await tokens_of(coordinator, TOKENS - len(tokens)), late_s


def test_a_session_goes_on_when_its_links_are_back(tmp_path: Path) -> None:
    digest = model_digest(MODELS / MODEL, tmp_path)

    async def everything() -> None:
        with closing(Coordinator()) as coordinator, ExitStack() as running:
            agents = []
            for name in ("d1", "d2"):
                one = running.enter_context(agent(tmp_path / name, name, coordinator.endpoint, coordinator.keys.public))
                coordinator.allowed.allow(one.public_key, name)
                agents.append(one)
            await coordinator.welcome(*agents)
            proxies = [running.enter_context(TcpProxy(coordinator.hellos[one.name].data_endpoint)) for one in agents]
            await open_route(coordinator, agents, proxies, digest)
            await coordinator.tell_worker("d1", CoordinatorAlive())
            await coordinator.tell_worker("d1", OpenSession("calm", 1, PROMPT, TOKENS, SAMPLING))
            calm = await tokens_of(coordinator, TOKENS)
            assert await coordinator.next(SessionEnded) == SessionEnded("calm", "length", TOKENS)
            stalled, late_s = await stalled_session(coordinator, proxies, "stalled")
            assert await coordinator.next(SessionEnded) == SessionEnded("stalled", "length", TOKENS)
            assert stalled == calm
            print(f"{late_s:.3f} s after the links' return")
            assert late_s < RESUMES_S

    asyncio.run(everything())


def test_a_client_sees_a_pause_when_a_devices_whole_link_stalls(tmp_path: Path) -> None:
    """In a namespace of its own, towards the coordinator as well: nothing is answered, not even a SYN."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    body["return_token_ids"] = True
    names = ("d1", "d2")
    with ExitStack() as stack:
        try:
            space = stack.enter_context(Namespaces(names, Uplink(1.25e6)))
        except NamespacesUnavailable as problem:
            pytest.skip(str(problem))
        cluster = LocalCluster(tmp_path, stack.enter_context(Processes(tmp_path)))
        move_coordinator(cluster, space.here)
        for name in names:
            cluster.add_device(name, MODELS, {"bind": f"tcp://{space.address(name)}:0"})
        cluster.append(links_toml(names, Uplink(latency_ms=LATENCY_MS)))
        cluster.start_coordinator(MODELS / MODEL, ["--source", "d1"])
        for name in names:
            cluster.start_device(name, space.prefix(name))
        cluster.wait_until_ready(60)
        calm = [token for choice in cluster.stream(body) for token in choice["token_ids"]]

        under_way = threading.Event()
        returned_s: list[float] = []

        def stall() -> None:
            under_way.wait()
            space.stall("d2")
            time.sleep(STALL_S)
            space.resume("d2")
            returned_s.append(time.monotonic())

        stalling = threading.Thread(target=stall)
        stalling.start()
        tokens: list[int] = []
        late_s = []
        for choice in cluster.stream(body):
            tokens += choice["token_ids"]
            late_s += [time.monotonic() - returned for returned in returned_s]
            if len(tokens) >= 20:
                under_way.set()
        stalling.join()
        assert tokens == calm
        print(f"{late_s[0]:.3f} s after the link's return")
        assert late_s[0] < RESUMES_S
