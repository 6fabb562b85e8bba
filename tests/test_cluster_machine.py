"""Whatever happens to devices, connections, micro-batches and readers: no session lost, stuck, or passed over.

Agents live in memory and assert for themselves that no row has two sessions and no pool more slots than it has. The
plan is one of several: one row as well as many micro-batches, routes that share their source and routes that share
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.wire.messages import (
    PROTOCOL_VERSION,
    Failed,
    Heartbeat,
    OpenSession,
    SessionEnded,
    SessionFailed,
    TokenEvent,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.cluster_settings import ClusterSettings
from edgectl.effects import Deliver, Effect, Send
from edgectl.engine import MAX_PRIORITY, Claim, EngineError
from edgectl.routes import BatchState
from tests.fakes.fake_agents import NAMES, Agent, PlanFor, Scene, one_layer_pair_each, rows_of, two_routes, two_sources

PLANS: Sequence[PlanFor] = (one_layer_pair_each, rows_of(2, 2), rows_of(1, 3), two_routes, two_sources)
KEYS = ("", "k", "l")
LIMITS = ClusterSettings(max_queued=4, max_sessions_per_key=6)


class Turns(Scene):
    """A scene that watches who waits: between two starts of a key, every other one that waits has a start."""

    def __init__(self, plan_for: PlanFor) -> None:
        super().__init__(plan_for, LIMITS)
        self.keys: dict[str, str] = {}
        """Of every session that was opened."""
        self.waiting: set[str] = set()
        self.begun: set[str] = set()
        """Opened at a source; again where that knows nothing of it."""
        self._passed: dict[str, Counter[str]] = {}

    def open(self, max_tokens: int = 3, claim: Claim | None = None) -> str:
        claim = claim or Claim()
        name = f"s{self.opened + 1}"
        self.keys[name] = claim.key
        self.waiting.add(name)
        try:
            return super().open(max_tokens, claim)
        except EngineError:
            self.waiting.discard(name)
            raise

    def take(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, OpenSession):
                self._started(effect.message.session)
            elif isinstance(effect, Deliver):
                self.waiting.discard(effect.session)
        return super().take(effects)

    def _started(self, session: str) -> None:
        if session in self.begun:
            assert not self.read[session], "opened again after a token, or after its end"
            return
        assert session in self.waiting, "started after its end"
        self.waiting.discard(session)
        self.begun.add(session)
        key = self.keys[session]
        self._passed.pop(key, None)
        waiting = {self.keys[name] for name in self.waiting} - {key}
        self._passed = {other: self._passed.get(other, Counter()) for other in waiting}
        for passed in self._passed.values():
            passed[key] += 1
            assert passed[key] == 1, f"{key} had two turns while another key waited"


class ClusterMachine(RuleBasedStateMachine):
    """A session's tokens come once, in order, then one end."""

    @initialize(plan_for=st.sampled_from(PLANS))
    def begin(self, plan_for: PlanFor) -> None:
        self.scene = Turns(plan_for)
        self.scene.ready()

    def running(self) -> list[str]:
        return [session for agent in self.scene.agents.values() for session in agent.running]

    def unfinished(self) -> list[str]:
        """Sessions whose reader still waits for something."""
        return [name for name, events in self.scene.read.items() if not events or isinstance(events[-1], TokenEvent)]

    @rule(name=st.sampled_from(NAMES))
    def agent_starts(self, name: str) -> None:
        self.scene.agents[name] = Agent(name, self.scene.agents[name].life + 1)
        self.scene.connect(name)

    @rule(name=st.sampled_from(NAMES))
    def worker_dies(self, name: str) -> None:
        agent = self.scene.agents[name]
        if self.scene.cluster.devices[name].origin == agent.origin:
            agent.loaded = None
            agent.micro_batches.clear()
            agent.running.clear()
            agent.sessions.clear()
            self.scene.say(name, WorkerRestarted("killed", f"tcp://{name}:x"))

    @rule(name=st.sampled_from(NAMES))
    def connection_breaks(self, name: str) -> None:
        """What was under way to the agent is lost with it."""
        agent = self.scene.agents[name]
        if self.scene.cluster.devices[name].origin != agent.origin:
            return
        old = (agent.origin, agent.worker_origin)
        self.scene.sent = [send for send in self.scene.sent if send.origin not in old]
        agent.connection += 1
        self.scene.connect(name)

    @rule()
    def network_delivers(self) -> None:
        self.scene.settle()

    @rule(names=st.sets(st.sampled_from(NAMES)), seconds=st.sampled_from([0.3, 1.1, 2.0, 4.0, 31.0]))
    def time_passes(self, names: set[str], seconds: float) -> None:
        for name in sorted(names):
            self.scene.say(name, Heartbeat(1))
        self.scene.tick(seconds)

    @precondition(lambda self: self.scene.cluster.deployment.missing())
    @rule()
    def absent_devices_start(self) -> None:
        for name in self.scene.cluster.deployment.missing():
            self.agent_starts(name)
        self.scene.settle()

    @rule(
        max_tokens=st.integers(1, 3),
        key=st.sampled_from(KEYS),
        priority=st.sampled_from([-MAX_PRIORITY, 0, 40]),
    )
    def session_opens(self, max_tokens: int, key: str, priority: int) -> None:
        cluster, scene = self.scene.cluster, self.scene
        claim = Claim(key, priority)
        if not cluster.is_ready:
            with pytest.raises(EngineError, match=r"no_agent|not_ready|answer_timeout"):
                scene.open(max_tokens, claim)
            return
        load = cluster.load()
        of_key = sum(scene.keys[name] == key for name in self.unfinished())
        if of_key >= LIMITS.max_sessions_per_key:
            code = "too_many_sessions"
        elif (
            sum(load.queued_by_key.values()) >= LIMITS.max_queued + load.rows - load.rows_in_use
            and key in load.queued_by_key
        ):
            code = "queue_full"
        else:
            scene.open(max_tokens, claim)
            return
        with pytest.raises(EngineError, match=code):
            scene.open(max_tokens, claim)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), lost=st.lists(st.booleans(), min_size=1, max_size=3))
    def source_makes_tokens(self, data: st.DataObject, lost: list[bool]) -> None:
        session = data.draw(st.sampled_from(self.running()))
        for one in lost:
            if session in self.running():
                self.scene.token(session, lost=one)

    @precondition(lambda self: self.scene.read)
    @rule(data=st.data())
    def reader_cancels(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.scene.read)))
        self.scene.take(self.scene.cluster.cancel(session, self.scene.now))

    @rule(name=st.sampled_from(NAMES))
    def source_reconnects(self, name: str) -> None:
        self.scene.say(name, WorkerHello(PROTOCOL_VERSION, name), worker=True)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), source_first=st.booleans())
    def micro_batch_breaks(self, data: st.DataObject, source_first: bool) -> None:
        session = data.draw(st.sampled_from(self.running()))
        agent = next(agent for agent in self.scene.agents.values() if session in agent.running)
        number = agent.running[session].micro_batch
        gone = agent.sessions_of(number)
        for each in gone:
            del agent.running[each]
        if not source_first:
            self.scene.say(agent.name, Failed("micro-batch", "answer_timeout", "late", number))
        for each in gone:
            self.scene.say(agent.name, SessionFailed(each, "answer_timeout", "late"), worker=True)
        self.scene.say(agent.name, Failed("micro-batch", "answer_timeout", "late", number))

    @invariant()
    def sessions_are_whole(self) -> None:
        for session, events in self.scene.read.items():
            tokens = [event for event in events if isinstance(event, TokenEvent)]
            assert [event.index for event in tokens] == list(range(len(tokens)))
            ends = [event for event in events if not isinstance(event, TokenEvent)]
            assert len(ends) <= 1
            assert not ends or events[-1] is ends[0]
            assert all(event.session == session for event in tokens)
            # Whatever is lost on the way to a source is sent again.
            assert tokens or not any(isinstance(end, EngineError) and end.code == "unknown_session" for end in ends)

    @invariant()
    def epochs_only_grow(self) -> None:
        for name in NAMES:
            epochs = [batch.epoch for batch in self.scene.agents[name].micro_batches.values()]
            assert len(set(epochs)) == len(epochs)
            assert max(epochs, default=0) <= max(self.scene.epochs, default=0)

    @invariant()
    def limits_are_kept(self) -> None:
        cluster = self.scene.cluster
        used = cluster.sessions.in_use()
        rows = {batch.number: batch.rows for batch in cluster.deployment.micro_batches if batch.is_alive}
        assert all(used[number] <= rows.get(number, 0) for number in used), (used, rows)
        assert cluster.sessions.queued <= LIMITS.max_queued + len(KEYS)
        traffic = cluster.sessions.traffic
        assert sum(traffic.sessions_on(route) for route in range(3)) == cluster.sessions.running

    @invariant()
    def nobody_waits_beside_a_free_row(self) -> None:
        load = self.scene.cluster.load()
        assert not load.queued_by_key or load.rows_in_use >= load.rows, load

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        cluster = self.scene.cluster
        if cluster.sessions.queued:
            assert any(batch.is_alive for batch in cluster.deployment.micro_batches), cluster.health()

    def work_off(self) -> None:
        """The sources go on until no session is left."""
        while self.running():
            self.scene.token()
            self.scene.settle()

    def teardown(self) -> None:
        """What runs comes to its end; and from any state, when all restart, the next sessions run."""
        scene = self.scene
        for name in NAMES:
            self.source_reconnects(name)
        scene.settle()
        self.work_off()
        assert not scene.cluster.sessions.queued
        for name in NAMES:
            scene.agents[name] = Agent(name, scene.agents[name].life + 1)
            scene.sent.clear()
        for name in NAMES:
            scene.connect(name)
        scene.settle()
        assert scene.cluster.is_ready, scene.cluster.health()
        assert {batch.state for batch in scene.cluster.deployment.micro_batches} == {BatchState.OPEN}
        session = scene.open(max_tokens=1)
        scene.settle()
        self.work_off()
        assert isinstance(scene.read[session][-1], SessionEnded)
        for events in scene.read.values():
            assert events
            assert not isinstance(events[-1], TokenEvent)
        super().teardown()


TestClusterMachine = ClusterMachine.TestCase
TestClusterMachine.settings = settings(max_examples=max(120, settings().max_examples), stateful_step_count=40)
