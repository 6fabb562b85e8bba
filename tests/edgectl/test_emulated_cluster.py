"""Two real agents play devices: their tokens come at the profile's pace, with whatever the real transport adds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.wire.link_clock import LinkClock
from edgectl.emulated_cluster import EmulatedCluster, arrivals_s, link_shapes
from edgectl.local_processes import Processes
from edgectl.output import CommandFailure
from edgectl.session_rate import ms_per_token
from planner.cost import CostModel
from planner.profile import ClusterProfile
from planner.testbed import load_testbed
from planner.types import Allotment, LayerRange, Plan, Route, Stage

pytestmark = pytest.mark.cluster

TESTBED = load_testbed("edgeshard-paper", "llama2-7b")
DEVICES = ("agx-0", "cloud-0")
PROFILE = replace(TESTBED.profile, devices=tuple(map(TESTBED.profile.device, DEVICES)), links=())


def plan_over(stages: tuple[Stage, ...], profile: ClusterProfile) -> Plan:
    work = TESTBED.defaults
    return Plan(
        model=profile.model,
        quantization=work.quantization,
        block_size=work.block_size,
        boundary=work.boundary,
        codec=work.codec,
        context=work.context,
        routes=(Route(stages),),
        allotments=tuple(Allotment(stage.device, (stage.layers,), 1, 0, 0) for stage in stages),
    )


def test_agents_play_one_plan_after_another_and_another_model(tmp_path: Path) -> None:
    halves = plan_over((Stage("agx-0", LayerRange(0, 8)), Stage("cloud-0", LayerRange(8, 32))), PROFILE)
    bigger = load_testbed("edgeshard-paper", "llama2-13b").profile
    alone = plan_over((Stage("cloud-0", LayerRange(0, 40)),), replace(bigger, links=()))
    model = CostModel(PROFILE, TESTBED.defaults)

    async def run(cluster: EmulatedCluster) -> tuple[list[float], list[float]]:
        cluster.start()
        async with cluster.serving(halves, PROFILE) as coordinator:
            first = await arrivals_s(coordinator, [7, 8, 9], 8)
        async with cluster.serving(alone, bigger) as coordinator:
            return first, await arrivals_s(coordinator, [7], 4)

    with Processes(tmp_path) as processes:
        first, second = asyncio.run(run(EmulatedCluster(tmp_path, processes, DEVICES)))
    compute_ms = model.decode_ms("agx-0", LayerRange(0, 8)) + model.decode_ms("cloud-0", LayerRange(8, 32))
    # Never faster than the devices that are played; how much slower is a matter of this machine.
    assert compute_ms - 0.5 < ms_per_token(first) < 3 * compute_ms
    alone_ms = CostModel(bigger, TESTBED.defaults).decode_ms("cloud-0", LayerRange(0, 40))
    assert alone_ms - 0.5 < ms_per_token(second) < 3 * alone_ms


def test_links_take_what_the_cost_model_counts() -> None:
    model = CostModel(TESTBED.profile, TESTBED.defaults)
    shapes = link_shapes(TESTBED.profile)
    assert sum(map(len, shapes.values())) == 15 * 14
    for source, peer in (("agx-0", "cloud-0"), ("agx-3", "nx-1")):
        shape = next(each for each in shapes[source] if each.peer == peer)
        arrived_s = LinkClock(shape, lambda: 0.0).send(100.0, model.hidden_bytes) - 100.0
        assert 1e3 * arrived_s == pytest.approx(model.transfer_ms(source, peer) + model.latency_ms(source, peer))


def test_a_device_that_is_not_in_the_profile_is_named(tmp_path: Path) -> None:
    alone = plan_over((Stage("agx-0", LayerRange(0, 32)),), PROFILE)
    without = replace(load_testbed("edgeshard-paper", "llama2-7b").profile, links=())
    without = replace(without, devices=without.devices[1:])

    async def run(cluster: EmulatedCluster) -> None:
        cluster.start()
        async with cluster.serving(alone, without):
            raise AssertionError("ready without times")

    began_s = time.monotonic()
    with Processes(tmp_path) as processes, pytest.raises(CommandFailure, match="no device agx-0"):
        asyncio.run(run(EmulatedCluster(tmp_path, processes, ("agx-0",))))
    assert time.monotonic() - began_s < 30
