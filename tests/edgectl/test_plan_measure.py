"""A plan measured over agents in memory: what is counted, and how it ends when the plan cannot run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Union

import msgspec
import pytest

from agent.device.telemetry import TelemetryRecorder
from agent.errors import ConfigError
from agent.wire.message import Message
from agent.wire.messages import (
    PROTOCOL_VERSION,
    Failed,
    Load,
    OpenSession,
    SessionEnded,
    SessionFailed,
    Telemetry,
    ToAgent,
    ToSource,
    WorkerHello,
    decode,
    encode,
)
from edgectl.cluster import Cluster, Inbound
from edgectl.config import ClusterConfig
from edgectl.effects import Effect
from edgectl.epochs import Epochs
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.plan_measure import Measured, measure_cluster_plan, measure_plan, measured_stages
from edgectl.planning import ServedModel, order_of_plan
from planner.types import Device
from tests.fakes.fake_agents import NAMES, Agent, Scene, one_layer_pair_each
from tests.fakes.measured_devices import SPEC

MODEL = ServedModel("m", "digest", replace(SPEC, num_layers=6, sliding_windows=(None,) * 6))
PLAN = one_layer_pair_each([Device(name, 1 << 30) for name in NAMES])


class Wire(Scene):
    """A ControlServer whose agents obey at once; the source makes a session's tokens as soon as it opens."""

    def __init__(
        self,
        *absent: str,
        memory_bytes: int = 1 << 30,
        short_of: int = 0,
        refuses: Failed | None = None,
        fails: bool = False,
    ) -> None:
        super().__init__()
        self.inbox: asyncio.Queue[tuple[bytes, str, bytes]] = asyncio.Queue()
        self.present = [name for name in NAMES if name not in absent]
        self.memory_bytes = memory_bytes
        self.short_of = short_of
        """Tokens that are missing from every answer."""
        self.refuses = refuses
        """The answer to every Load."""
        self.fails = fails
        self.opened_sessions: list[OpenSession] = []

    def say(self, name: str, message: Inbound, *, worker: bool = False) -> list[Effect]:
        agent = self.agents[name]
        self.inbox.put_nowait((agent.worker_origin if worker else agent.origin, name, encode(message)))
        return []

    def obey(self, agent: Agent, message: Message) -> None:
        if isinstance(message, Load) and self.refuses is not None:
            self.say(agent.name, self.refuses)
            return
        super().obey(agent, message)
        if isinstance(message, OpenSession):
            self.opened_sessions.append(message)
            if self.fails:
                self.say(agent.name, SessionFailed(message.session, "worker_lost", "b died"), worker=True)
                return
            for _ in range(message.max_tokens - self.short_of):
                self.token()
            if self.short_of:
                tokens = message.max_tokens - self.short_of
                self.emit(agent, SessionEnded(message.session, "stop", tokens))

    async def receive(self) -> tuple[bytes, str, bytes]:
        return await self.inbox.get()

    async def send(self, origin: bytes, data: bytes) -> bool:
        message: Message = decode(data, Union[ToAgent, ToSource])
        self.obey(self.agents[origin.decode().split(":")[0]], message)
        return True


def measure(wire: Wire, *, tokens: int = 5, generations: int = 3, wait_s: float = 5.0) -> Measured:
    async def run() -> Measured:
        order = order_of_plan(MODEL, PLAN, NAMES)
        cluster = Cluster([(name, f"key-{name}") for name in NAMES], order, Epochs(1), "1.0.0")
        for name in wire.present:
            wire.say(name, WorkerHello(PROTOCOL_VERSION, name), worker=True)
            wire.say(name, msgspec.structs.replace(wire.agents[name].hello(), memory_bytes=wire.memory_bytes))
        prompts = [[number, number + 1] for number in range(generations + 1)]
        return await measure_cluster_plan(
            PLAN, cluster, wire, MODEL.spec, start=1, prompts=prompts, tokens=tokens, wait_s=wait_s, settle_s=0.0
        )

    return asyncio.run(run())


def test_the_first_prompt_warms_up_and_every_other_one_counts() -> None:
    wire = Wire()
    measured = measure(wire, tokens=5, generations=3)
    assert [opening.prompt for opening in wire.opened_sessions] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert all((opening.max_tokens, opening.stop_ids) == (5, ()) for opening in wire.opened_sessions)
    assert len(measured.generations_ms) == 3
    assert sorted(measured.generations_ms)[1] == measured.ms_per_token > 0
    assert measured.tokens_per_s == pytest.approx(1e3 / measured.ms_per_token)
    assert measured.time_to_first_token_ms > 0
    assert [stage.device for stage in measured.stages] == list(NAMES)
    assert measured.stages[0].compute_ms is None


@pytest.mark.parametrize(
    ("wire", "exit_code", "message"),
    [
        (lambda: Wire("b"), ExitCode.UNAVAILABLE, "waiting for b"),
        (lambda: Wire(memory_bytes=1 << 20), ExitCode.MEMORY, "no longer fits"),
        (lambda: Wire(refuses=Failed("load", "model_mismatch", "a: another copy")), ExitCode.MODEL, "another copy"),
        (lambda: Wire(fails=True), ExitCode.SESSION_LOST, "measuring the plan: b died"),
        (lambda: Wire(short_of=2), ExitCode.SESSION_LOST, "3 tokens came of 5: stop"),
    ],
)
def test_a_plan_that_cannot_run_ends_with_its_reason(
    wire: Callable[[], Wire], exit_code: ExitCode, message: str
) -> None:
    with pytest.raises(CommandFailure, match=message) as raised:
        measure(wire(), wait_s=0.3)
    assert raised.value.exit_code is exit_code


def test_stages_are_those_of_the_time_between_two_snapshots() -> None:
    recorders = {name: TelemetryRecorder() for name in NAMES}

    def observe(compute_s: float) -> dict[str, Telemetry]:
        for recorder in recorders.values():
            recorder.observe("decode_compute_seconds", compute_s)
            recorder.observe("decode_wait_seconds", 0.0)
            recorder.observe("hop_rtt_seconds", 0.001)
        recorders["a"].observe("decode_wire_seconds", 0.003)
        return {name: recorder.snapshot() for name, recorder in recorders.items()}

    before = observe(9.0)
    after = observe(0.002)
    stages = measured_stages(PLAN, before, after)
    assert [(stage.compute_ms, stage.hop_ms, stage.wait_ms) for stage in stages] == [(2.0, 1.0, 0.0)] * 3


@pytest.mark.parametrize(("prompt", "tokens"), [(0, 4), (62, 4), (8, 1)])
def test_lengths_that_do_not_fit_are_refused_before_anything_is_asked(prompt: int, tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"prompt of {prompt} and {tokens} tokens"):
        measure_plan(PLAN, ClusterConfig(), "/absent", prompt_tokens=prompt, tokens=tokens)
