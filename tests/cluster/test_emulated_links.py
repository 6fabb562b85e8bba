"""Links that the coordinator has agents emulate, as `edgectl profile` measures them: they are what was asked for."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from agent.wire.addresses import LinkShape, PeerKey
from agent.wire.measure_messages import LinkMeasured, MeasureLink
from agent.wire.messages import PROTOCOL_VERSION, Welcome
from planner.profile import LinkProfile
from tests.fakes.agent_process import Coordinator, agent

pytestmark = pytest.mark.cluster

RATE = 1.25e6
LATENCY_MS = {"d1": 12.0, "d2": 4.0}
"""By the device a link begins at; a probe's pong comes back over the other's."""


def test_a_measured_link_is_the_one_emulated(tmp_path: Path) -> None:
    found: list[LinkProfile] = []

    async def everything() -> None:
        with closing(Coordinator()) as coordinator, ExitStack() as running:
            agents = []
            for name in LATENCY_MS:
                one = running.enter_context(agent(tmp_path / name, name, coordinator.endpoint, coordinator.keys.public))
                coordinator.allowed.allow(one.public_key, name)
                agents.append(one)
            await coordinator.welcome(*agents)
            peers = tuple(PeerKey(one.name, one.public_key) for one in agents)
            for one, other in zip(agents, reversed(agents), strict=True):
                links = (LinkShape(other.name, bytes_per_s=RATE, latency_ms=LATENCY_MS[one.name]),)
                await coordinator.tell(one.name, Welcome(PROTOCOL_VERSION, "0.0.0", peers, links))
            endpoint = coordinator.hellos["d2"].data_endpoint
            sizes = ((1, 4096), (4, 4096), (8, 4096))
            request = MeasureLink(1, "d2", endpoint, agents[1].public_key, sizes, "fp16", 4.0)
            await coordinator.tell("d1", request)
            found.append((await coordinator.next(LinkMeasured, "d1")).link)

    asyncio.run(everything())
    [link] = found
    assert link.bandwidth_bytes_per_s == pytest.approx(RATE, rel=0.1)
    round_trip_ms = sum(LATENCY_MS.values())
    assert link.rtt_p50_ms is not None
    # What a busy machine adds to waking four times is not the link's.
    assert round_trip_ms <= link.rtt_p50_ms < round_trip_ms + 15.0
    # The prober knows only how long both ways take: half of it, as on any link whose two ways differ.
    assert round_trip_ms / 2 - 1.0 <= link.latency_ms < round_trip_ms / 2 + 8.0
