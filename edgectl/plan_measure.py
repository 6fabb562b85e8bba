"""`edgectl plan --measure`: bring a plan onto the devices, generate tokens with it, and say how long they took.

The coordinator runs in this process, without HTTP. A session's times are taken where a client would take them, at the
coordinator: from opening to the first token, and from the first to the last one over the steps between.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from agent.device.telemetry import difference
from agent.errors import ConfigError
from agent.wire.messages import HEARTBEAT_INTERVAL_S, Sampling, Telemetry
from edgectl.cluster import Cluster
from edgectl.config import ClusterConfig, state_directory
from edgectl.coordinator import ControlServer, Coordinator, Reporter
from edgectl.deploy import Phase
from edgectl.effects import NoPlan, Notice, Ready
from edgectl.engine import EngineError
from edgectl.epochs import Epochs, count_start
from edgectl.failures import ExitCode
from edgectl.measuring_run import open_control
from edgectl.model_source import describe_model, locate_model
from edgectl.output import CommandFailure, progress_bar, say
from edgectl.planning import order_of_plan
from edgectl.status import stages_of
from planner.model_spec import ModelSpec
from planner.types import Plan

GENERATIONS = 5
"""Their median is the result; an odd number, so that it is one of them."""
LOADING_PATIENCE_S = 900.0
"""Loading and quantizing a model on a small board takes minutes; longer than this is taken for a hang."""
LOOK_INTERVAL_S = 0.25
SETTLE_S = 2 * HEARTBEAT_INTERVAL_S
"""After this long the last heartbeat of every device tells of all that was done before."""


@dataclass(frozen=True, slots=True)
class MeasuredStage:
    """Means per decoded token of one stage; None where a device did not say."""

    device: str
    compute_ms: float | None
    hop_ms: float | None
    """Behind the stage; see `edgectl.status` for how the time on the wires is split."""
    wait_ms: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One session at a time under a plan: medians over generations."""

    ms_per_token: float
    """Decode alone."""
    time_to_first_token_ms: float
    tokens_per_s: float
    """Decode alone, of one session: what many reach together is what `edgectl bench serve` measures."""
    stages: tuple[MeasuredStage, ...]
    generations_ms: tuple[float, ...]
    """Milliseconds per token of each generation, for their spread."""


def measure_plan(
    plan: Plan,
    config: ClusterConfig,
    model: str,
    *,
    prompt_tokens: int,
    tokens: int,
    generations: int = GENERATIONS,
    wait_s: float = 30.0,
) -> Measured:
    """Runs `plan` on the devices of cluster.toml with prompts and answers of these lengths.

    `model` is a model directory or a name on the hub, as in `edgectl serve --model`. Missing devices are waited for
    `wait_s`. Raises ConfigError, ModelError, BadPlan, and CommandFailure when the plan cannot run or a session fails.
    """
    if not 1 <= prompt_tokens <= plan.context - tokens or tokens < 2:
        raise ConfigError(
            f"a prompt of {prompt_tokens} and {tokens} tokens cannot be measured in a context of {plan.context}; "
            "at least two tokens are needed"
        )
    located = locate_model(model)
    with progress_bar("reading the model") as progress:
        served = describe_model(located, progress)
    order = order_of_plan(served, plan, config.device_names())
    start = count_start(state_directory(config.coordinator, os.environ))
    devices = [(device.name, device.key) for device in config.devices]
    cluster = Cluster(devices, order, Epochs(start), version("edgectl"), config.settings())
    prompts = _prompts(served.spec.vocab_size, prompt_tokens, generations + 1)

    async def run() -> Measured:
        control = open_control(config)
        try:
            return await measure_cluster_plan(
                plan, cluster, control, served.spec, start=start, prompts=prompts, tokens=tokens, wait_s=wait_s
            )
        finally:
            control.close()

    return asyncio.run(run())


async def measure_cluster_plan(
    plan: Plan,
    cluster: Cluster,
    control: ControlServer,
    spec: ModelSpec,
    *,
    start: int,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    wait_s: float,
    settle_s: float = SETTLE_S,
) -> Measured:
    """The same on a cluster whose order is the plan; the first prompt warms up and does not count."""
    watcher = _Watcher()
    coordinator = Coordinator(cluster, spec, plan.context, start=start, clock=time.monotonic, reporter=watcher)
    running = asyncio.create_task(coordinator.run(control))
    try:
        await _until_ready(cluster, watcher, running, wait_s)
        try:
            return await _measure(plan, coordinator, prompts, tokens, settle_s)
        except EngineError as problem:
            raise CommandFailure.of(problem.code, f"measuring the plan: {problem.detail}") from problem
        finally:
            await coordinator.shut_down()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _Watcher(Reporter):
    """Waits for the deployment: ready, or no plan."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Ready | NoPlan] = asyncio.get_running_loop().create_future()

    def notice(self, notice: Notice) -> None:
        say(notice.detail if notice.severity == "info" else f"{notice.severity}: {notice.detail}")

    def ready(self, ready: Ready) -> None:
        self._set(ready)

    def no_plan(self, problem: NoPlan) -> None:
        self._set(problem)

    def _set(self, outcome: Ready | NoPlan) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


async def _until_ready(cluster: Cluster, watcher: _Watcher, running: asyncio.Task[None], wait_s: float) -> None:
    """Raises CommandFailure when devices stay away, the plan does not fit, or a device refuses its part."""
    began_s = time.monotonic()
    while not watcher.outcome.done():
        awaited: list[asyncio.Future[Any]] = [watcher.outcome, running]
        await asyncio.wait(awaited, timeout=LOOK_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
            raise CommandFailure(ExitCode.FAILURE, "the control server stopped by itself")
        deployment, waited_s = cluster.deployment, time.monotonic() - began_s
        if deployment.phase is Phase.REFUSED:
            raise CommandFailure.of(deployment.code, deployment.detail)
        if deployment.phase is Phase.WAITING and waited_s > wait_s:
            raise CommandFailure.of("no_agent", f"{cluster.health().detail} since {wait_s:.0f} s")
        if waited_s > LOADING_PATIENCE_S:
            raise CommandFailure.of("answer_timeout", f"not ready after {waited_s:.0f} s: {cluster.health().detail}")
    outcome = watcher.outcome.result()
    if isinstance(outcome, NoPlan):
        raise CommandFailure.of(outcome.code, outcome.detail)


async def _measure(
    plan: Plan, coordinator: Coordinator, prompts: Sequence[Sequence[int]], tokens: int, settle_s: float
) -> Measured:
    await _generate(coordinator, prompts[0], tokens)
    await asyncio.sleep(settle_s)
    before = coordinator.telemetry()
    with progress_bar("generating") as progress:
        times = []
        for number, prompt in enumerate(prompts[1:]):
            progress(number, len(prompts) - 1)
            times.append(await _generate(coordinator, prompt, tokens))
    await asyncio.sleep(settle_s)
    per_token_ms = [per_token for _, per_token in times]
    ms_per_token = statistics.median(per_token_ms)
    return Measured(
        ms_per_token=ms_per_token,
        time_to_first_token_ms=statistics.median(first for first, _ in times),
        tokens_per_s=1e3 / ms_per_token,
        stages=measured_stages(plan, before, coordinator.telemetry()),
        generations_ms=tuple(per_token_ms),
    )


async def _generate(coordinator: Coordinator, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
    """Milliseconds to the first token, and per token after it. No id stops it: every answer has all its tokens."""
    began_s = time.monotonic()
    session = await coordinator.open(prompt, tokens, Sampling(temperature=0.0), ())
    arrivals_s = [time.monotonic() async for _ in session]
    if len(arrivals_s) != tokens:
        raise CommandFailure.of("session_failed", f"{len(arrivals_s)} tokens came of {tokens}: {session.reason}")
    return 1e3 * (arrivals_s[0] - began_s), 1e3 * (arrivals_s[-1] - arrivals_s[0]) / (tokens - 1)


def measured_stages(
    plan: Plan, before: Mapping[str, Telemetry], after: Mapping[str, Telemetry]
) -> tuple[MeasuredStage, ...]:
    """What each stage's device says of the time between two snapshots."""
    between = {name: difference(later, before.get(name, Telemetry())) for name, later in after.items()}

    def number(value: object) -> float | None:
        return float(value) if isinstance(value, (int, float)) else None

    return tuple(
        MeasuredStage(
            str(stage["device"]), number(stage["compute_ms"]), number(stage["wire_ms"]), number(stage["wait_ms"])
        )
        for stage in stages_of(plan, between)
    )


def _prompts(vocab_size: int, length: int, count: int) -> list[list[int]]:
    """Ids in the vocabulary, the same ones every time; small ids are left out, where control tokens are."""
    chance = random.Random(0)
    lowest = min(64, vocab_size - 1)
    return [[chance.randrange(lowest, vocab_size) for _ in range(length)] for _ in range(count)]
