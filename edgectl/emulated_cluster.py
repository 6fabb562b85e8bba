"""Agents on this machine that play the devices of a profile: real processes, sockets and frames, no weights.

The coordinator runs in this process. Agents stay up from plan to plan; each plan has a coordinator of its own, to which
they connect again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from agent.wire.addresses import LinkShape
from agent.wire.messages import Sampling
from edgectl.cluster import Cluster
from edgectl.cluster_settings import ClusterSettings
from edgectl.config import ClusterConfig, load_config
from edgectl.coordinator import Coordinator, Reporter
from edgectl.deploy import Order, Phase
from edgectl.effects import Notice
from edgectl.epochs import Epochs
from edgectl.failures import ExitCode
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from edgectl.measuring_run import open_control
from edgectl.output import CommandFailure, say
from planner.profile import ClusterProfile
from planner.profile_json import dump_profile
from planner.types import Pipeline, Plan

NO_DIGEST = "emulated"
"""There are no weights whose content could differ."""
LOOK_S = 0.05
READY_PATIENCE_S = 120.0
"""Thirty processes on two busy cores are up in a quarter of it."""


class EmulatedCluster:
    """Devices, all of whose agents play them; use inside `with Processes(directory)`."""

    def __init__(self, directory: Path, processes: Processes, devices: Sequence[str]) -> None:
        self._processes = processes
        self._times = directory / "times"
        self._times.mkdir(exist_ok=True)
        self._cluster = LocalCluster(directory, processes)
        self._devices = tuple(devices)
        self._starts = 0
        for name in self._devices:
            self._cluster.add_device(name, directory, {"emulate": str(self._times), "log_level": "warning"})

    def start(self) -> None:
        """Starts every agent; returns before they are there."""
        for name in self._devices:
            self._cluster.start_device(name)

    @asynccontextmanager
    async def serving(
        self, plan: Plan, profile: ClusterProfile, pipeline: Pipeline = "no-bubbles"
    ) -> AsyncIterator[Coordinator]:
        """A coordinator whose devices are ready to run the plan at the pace of the profile, its links included.

        Raises CommandFailure when they do not become ready, ProcessFailed when an agent ends.
        """
        (self._times / f"{profile.model}.json").write_text(dump_profile(profile), encoding="utf-8")
        self._starts += 1
        config = load_config(self._cluster.config, {})
        coordinator = Coordinator(
            self._cluster_for(plan, profile, pipeline, config),
            profile.spec,
            plan.context,
            start=self._starts,
            clock=time.monotonic,
            reporter=_Warnings(),
        )
        control = open_control(config)
        running = asyncio.create_task(coordinator.run(control))
        try:
            await self._until_ready(coordinator, plan, running)
            yield coordinator
            await coordinator.shut_down()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            control.close()

    def _cluster_for(self, plan: Plan, profile: ClusterProfile, pipeline: Pipeline, config: ClusterConfig) -> Cluster:
        used = {stage.device for route in plan.routes for stage in route.stages}
        order = Order(
            model=plan.model,
            digest=NO_DIGEST,
            # The plan as it is: what this machine's memory is has no meaning for the devices that are played.
            plan_for=lambda present: plan,
            devices=tuple(name for name in self._devices if name in used),
            min_devices=len(used),
            source=plan.routes[0].source,
            pipeline=pipeline,
        )
        devices = [(device.name, device.key) for device in config.devices]
        settings = ClusterSettings(links=link_shapes(profile))
        return Cluster(devices, order, Epochs(self._starts), version("edgectl"), settings)

    async def _until_ready(self, coordinator: Coordinator, plan: Plan, running: asyncio.Task[None]) -> None:
        """Until every micro-batch is open, not only the first."""
        began_s = time.monotonic()
        seats = sum(route.micro_batches for route in plan.routes)
        while not coordinator.cluster.is_ready or len(coordinator.cluster.deployment.seats()) < seats:
            await asyncio.sleep(LOOK_S)
            self._processes.check()
            if running.done():
                running.result()
                raise CommandFailure(ExitCode.FAILURE, "the control server stopped by itself")
            deployment = coordinator.cluster.deployment
            if deployment.phase is Phase.REFUSED:
                raise CommandFailure.of(deployment.code, deployment.detail)
            if time.monotonic() - began_s > READY_PATIENCE_S:
                detail = f"{coordinator.health().detail}\n\n{self._processes.logs()}"
                raise CommandFailure.of("answer_timeout", f"not ready after {READY_PATIENCE_S:.0f} s: {detail}")


def link_shapes(profile: ClusterProfile) -> dict[str, tuple[LinkShape, ...]]:
    """Every link of a profile as one to emulate, by the device it begins at."""
    shapes: dict[str, tuple[LinkShape, ...]] = {}
    for link in profile.links:
        # Without a burst: a frame takes its whole transfer time however long the link has paused, as in the cost model.
        shape = LinkShape(link.destination, link.bandwidth_bytes_per_s, 0, link.latency_ms)
        shapes[link.source] = (*shapes.get(link.source, ()), shape)
    return shapes


class _Warnings(Reporter):
    """Passes on what is not as it should be."""

    def notice(self, notice: Notice) -> None:
        if notice.severity != "info":
            say(f"{notice.severity}: {notice.detail}")


async def arrivals_s(coordinator: Coordinator, prompt: Sequence[int], tokens: int) -> list[float]:
    """When each token of one session came to the coordinator. Raises EngineError, CommandFailure for too few."""
    session = await coordinator.open(prompt, tokens, Sampling(temperature=0.0), ())
    found = [time.monotonic() async for _ in session]
    if len(found) != tokens:
        raise CommandFailure.of("session_failed", f"{len(found)} tokens came of {tokens}: {session.reason}")
    return found
