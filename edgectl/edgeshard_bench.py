"""EdgeShard's Table IV (arXiv 2405.14371) run: agents play its 15 devices, every row that fits is measured.

Times of devices and links are those our planner predicts with; sockets, frames, encryption, scheduling and sampling are
real. What the measured number has beyond the predicted one is what those cost on this machine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgectl.coordinator import Coordinator
from edgectl.emulated_cluster import EmulatedCluster, arrivals_s
from edgectl.failures import ExitCode
from edgectl.local_processes import Processes
from edgectl.output import CommandFailure
from edgectl.plan_measure import SETTLE_S, MeasuredStage, measured_stages
from edgectl.session_rate import ms_per_token, steady_tokens_per_s
from planner.cost import CostModel
from planner.paper_methods import paper_model
from planner.pipeline import PipelineTimes
from planner.reproduction import Reproduced
from planner.types import Allotment, Plan, StageCost

LEAST_TOKENS = 6
"""Of a session, however slow: fewer intervals say little."""
SKIPPED_TOKENS = 2
"""Of a session in a full pipeline: connections are made and micro-batches fall into step."""
UNEVEN_TOKENS = 4
"""By as many tokens the first and the last of the sessions in a full pipeline may be apart, beside those skipped."""
PROMPT = (1,)
"""One token, as the calibrated testbed has it."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One row of the table: the paper's number, ours as planned, ours as measured."""

    reproduced: Reproduced
    plan: Plan
    times: PipelineTimes
    """What the plan expects of every stage and link."""
    measured: float
    """In the row's quantity."""
    tokens: int
    """Of each session."""
    stages: tuple[MeasuredStage, ...] = ()
    """Means per token as the agents tell them; of one session alone."""

    @property
    def name(self) -> str:
        return row_name(self.reproduced)

    @property
    def predicted(self) -> float:
        assert self.reproduced.ours is not None
        return self.reproduced.ours

    @property
    def difference(self) -> float:
        """Measured over predicted, less one."""
        return self.measured / self.predicted - 1

    @property
    def sessions(self) -> int:
        route = self.plan.routes[0]
        return route.micro_batches * route.rows

    @property
    def added_ms(self) -> float | None:
        """Milliseconds a token took longer than predicted, of one session alone; None for a rate."""
        return self.measured - self.predicted if self.reproduced.cell.quantity == "ms_per_token" else None


def row_name(row: Reproduced) -> str:
    """How a row is chosen: model, method, quantity, and what a rate rests on."""
    cell = row.cell
    if cell.quantity == "ms_per_token":
        return f"{cell.model} {cell.method} {cell.quantity}"
    plan = f" {cell.plan}" if cell.method == "edgeshard" else ""
    return f"{cell.model} {cell.method} {cell.quantity} m{cell.micro_batches} r{cell.rows}{plan}"


def runnable(rows: Sequence[Reproduced], wanted: Sequence[str] = ()) -> list[Reproduced]:
    """Rows that fit in the memory the paper states and whose name has all words of one of `wanted`; all without any."""
    return [
        row
        for row in rows
        if row.fits and row.ours is not None and row.route is not None
        if not wanted or any(all(word in row_name(row) for word in each.split()) for each in wanted)
    ]


def plan_of(row: Reproduced) -> tuple[Plan, CostModel]:
    """What the row's cluster is to run. Raises ValueError for a row without a route."""
    if row.route is None or row.ours is None:
        raise ValueError(f"{row_name(row)} has no plan")
    cell = row.cell
    model = paper_model(cell.model)
    work = model.workload
    # A latency is one session's, whatever the row says of rates.
    many = cell.quantity == "tokens_per_s"
    route = replace(row.route, micro_batches=cell.micro_batches if many else 1, rows=cell.rows if many else 1)
    slots = route.micro_batches * route.rows
    times = model.times(route, route.rows)
    hops = [*(a + b for a, b in zip(times.transfer_ms, times.latency_ms, strict=True)), times.return_ms]
    plan = Plan(
        model=cell.model,
        quantization=work.quantization,
        block_size=work.block_size,
        boundary=work.boundary,
        codec=work.codec,
        context=work.context,
        routes=(route,),
        allotments=tuple(
            Allotment(
                stage.device,
                (stage.layers,),
                slots,
                model.memory_used_bytes(stage.device, route, slots),
                model.memory_available_bytes(stage.device),
            )
            for stage in route.stages
        ),
        predicted={cell.quantity: row.ours},
        costs=tuple(StageCost(compute, hop) for compute, hop in zip(times.compute_ms, hops, strict=True)),
    )
    return plan, model


def tokens_for(row: Reproduced, seconds: float, context: int) -> int:
    """How many tokens each session generates so that the row takes about `seconds`."""
    assert row.ours is not None
    if row.cell.quantity == "ms_per_token":
        wanted = seconds * 1e3 / row.ours
    else:
        wanted = SKIPPED_TOKENS + seconds * row.ours / (row.cell.micro_batches * row.cell.rows)
    least = LEAST_TOKENS + UNEVEN_TOKENS * (row.cell.quantity == "tokens_per_s")
    return min(max(least, math.ceil(wanted)), context - len(PROMPT) - 1)


def run_edgeshard(
    directory: Path, rows: Sequence[Reproduced], seconds: float, say: Say, settle_s: float = SETTLE_S
) -> list[MeasuredRow]:
    """Starts an agent per device that a row uses and runs the rows one after another, each for about `seconds`.

    Raises CommandFailure and ProcessFailed when the cluster does not come up or too few tokens come side by side,
    EngineError when a session fails.
    """
    devices = list(dict.fromkeys(stage.device for row in rows if row.route is not None for stage in row.route.stages))

    async def run(cluster: EmulatedCluster) -> list[MeasuredRow]:
        say(f"starting {len(devices)} agents")
        cluster.start()
        found = []
        for number, row in enumerate(rows, start=1):
            measured = await _measure(cluster, row, seconds, settle_s)
            unit = "ms per token" if row.cell.quantity == "ms_per_token" else "tokens/s"
            numbers = f"{measured.predicted:.2f} predicted, {measured.measured:.2f} {unit} measured"
            say(f"{number} of {len(rows)}: {measured.name}: {numbers} ({measured.difference:+.1%})")
            found.append(measured)
        return found

    with Processes(directory) as processes:
        return asyncio.run(run(EmulatedCluster(directory, processes, devices)))


async def _measure(cluster: EmulatedCluster, row: Reproduced, seconds: float, settle_s: float) -> MeasuredRow:
    plan, model = plan_of(row)
    route = plan.routes[0]
    tokens = tokens_for(row, seconds, plan.context)
    times = model.times(route, route.rows)
    async with cluster.serving(plan, model.profile) as coordinator:
        if row.cell.quantity == "tokens_per_s":
            longer = min(2 * tokens, plan.context - len(PROMPT) - 1)
            rate = await _tokens_per_s(coordinator, route.micro_batches * route.rows, tokens, longer)
            return MeasuredRow(row, plan, times, rate, tokens)
        await asyncio.sleep(settle_s)
        before = coordinator.telemetry()
        arrived_s = await arrivals_s(coordinator, PROMPT, tokens)
        await asyncio.sleep(settle_s)
        stages = measured_stages(plan, before, coordinator.telemetry())
        return MeasuredRow(row, plan, times, ms_per_token(arrived_s), tokens, stages)


async def _tokens_per_s(coordinator: Coordinator, sessions: int, tokens: int, longer: int) -> float:
    """Once more with `longer` sessions when they hardly overlapped: their prompts go one after the other."""
    arrived_s = await asyncio.gather(*(arrivals_s(coordinator, PROMPT, tokens) for _ in range(sessions)))
    try:
        return steady_tokens_per_s(arrived_s, SKIPPED_TOKENS)
    except ValueError as problem:
        raise CommandFailure(
            ExitCode.FAILURE, f"{sessions} sessions: {problem}", "give a row more --seconds"
        ) from problem
