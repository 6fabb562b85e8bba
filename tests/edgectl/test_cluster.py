"""The coordinator's state machine in scripted scenarios; `tests/test_cluster_machine.py` plays random ones."""

from __future__ import annotations

import pytest

from agent.wire.messages import (
    DEVICE_LOST_S,
    DEVICE_SUSPECT_S,
    PROTOCOL_VERSION,
    CancelSession,
    CloseMicroBatch,
    CoordinatorAlive,
    Failed,
    Heartbeat,
    Load,
    Rejected,
    SessionEnded,
    SessionFailed,
    TokenEvent,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.cluster import Inbound
from edgectl.deploy import Phase
from edgectl.effects import Ready, Send
from edgectl.engine import EngineError
from tests.fakes.fake_agents import NAMES, Scene


def test_a_session_from_opening_to_end() -> None:
    scene = Scene().ready()
    session = scene.open(max_tokens=2)
    scene.settle()
    scene.token()
    scene.token()
    assert scene.read[session] == [
        TokenEvent(session, 0, 100),
        TokenEvent(session, 1, 101),
        SessionEnded(session, "length", 2),
    ]


def test_a_session_waits_for_the_one_before() -> None:
    scene = Scene().ready()
    first, second = scene.open(), scene.open()
    scene.settle()
    assert list(scene.agents["a"].running) == [first]
    for _ in range(3):
        scene.token()
    scene.settle()
    assert list(scene.agents["a"].running) == [second]


@pytest.mark.parametrize(
    ("connected", "code", "detail"),
    [((), "no_agent", "waiting for a, b, c"), (("a", "c"), "no_agent", "waiting for b"), (NAMES, "not_ready", "load")],
)
def test_a_session_that_cannot_open_says_why(connected: tuple[str, ...], code: str, detail: str) -> None:
    scene = Scene()
    scene.connect(*connected)
    with pytest.raises(EngineError, match=detail) as refused:
        scene.open()
    assert refused.value.code == code
    assert scene.cluster.health().devices_connected == len(connected)


def test_a_refused_plan_is_why_sessions_do_not_open() -> None:
    scene = Scene()
    scene.connect(*NAMES)
    scene.say("b", Failed("load", "model_mismatch", "b: digest 12, the coordinator's copy 34"))
    with pytest.raises(EngineError, match="b: digest 12") as refused:
        scene.open()
    assert refused.value.code == "model_mismatch"
    scene.agents["b"].life += 1
    scene.connect("b")
    scene.settle()
    assert scene.cluster.is_ready


def test_another_protocol_version_is_refused_naming_both() -> None:
    scene = Scene()
    scene.connect("b", "c")
    scene.sent.clear()
    scene.say("a", scene.agents["a"].hello(protocol=PROTOCOL_VERSION + 6))
    (rejected,) = scene.messages("a", Rejected)
    assert isinstance(rejected, Rejected)
    assert rejected.code == "version_mismatch"
    for part in (f"protocol {PROTOCOL_VERSION + 6}", "9.9.9", f"protocol {PROTOCOL_VERSION}", "1.0.0"):
        assert part in rejected.detail
    assert "version_mismatch" in scene.cluster.health().detail
    scene.say("a", WorkerHello(PROTOCOL_VERSION + 6, "a"), worker=True)
    assert scene.cluster.devices["a"].worker_origin is None


def test_a_key_of_another_device_is_refused() -> None:
    scene = Scene()
    scene.say("a", scene.agents["a"].hello(name="b"))
    (rejected,) = scene.messages("a", Rejected)
    assert isinstance(rejected, Rejected)
    assert rejected.code == "not_authorized"
    assert "belongs to a" in rejected.detail
    assert not scene.cluster.devices["b"].is_present


def test_a_device_of_no_file_is_refused() -> None:
    cluster = Scene().cluster
    (effect,) = cluster.on_message(b"x", "stranger", Heartbeat(1), 0.0)[:1]
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Rejected)


def test_messages_of_an_unknown_or_replaced_connection_are_not_used() -> None:
    scene = Scene().ready()
    old = scene.agents["b"].origin
    scene.agents["b"].life += 1
    scene.connect("b")
    scene.settle()
    effects = scene.cluster.on_message(old, "b", WorkerRestarted("killed", "tcp://old:1"), scene.now)
    (rejected,) = [e.message for e in effects if isinstance(e, Send)]
    assert isinstance(rejected, Rejected)
    assert "another agent with the key of b" in rejected.detail
    assert scene.cluster.devices["b"].data_endpoint == "tcp://b:1"
    session = scene.open()
    assert scene.cluster.on_message(b"somebody", "a", TokenEvent(session, 0, 1), scene.now) == []
    assert scene.read[session] == []


def test_a_connection_that_broke_costs_no_session() -> None:
    scene = Scene().ready()
    session = scene.open()
    scene.settle()
    scene.token()
    for name in ("a", "b"):
        scene.agents[name].connection += 1
        scene.connect(name)
    assert scene.cluster.is_ready
    assert not scene.messages("a", Load)
    scene.settle()
    scene.token()
    scene.token()
    tokens = [event for event in scene.read[session] if isinstance(event, TokenEvent)]
    assert [event.index for event in tokens] == [0, 1, 2]
    assert isinstance(scene.read[session][-1], SessionEnded)


def test_the_plan_is_announced_when_the_sources_worker_is_there_too() -> None:
    scene = Scene()
    effects = [e for name in NAMES for e in scene.say(name, scene.agents[name].hello())]
    scene.settle()
    assert not any(isinstance(effect, Ready) for effect in effects)
    assert not scene.cluster.is_ready
    for name in ("b", "c"):
        assert not any(isinstance(e, Ready) for e in scene.say(name, WorkerHello(PROTOCOL_VERSION, name), worker=True))
    announced = scene.say("a", WorkerHello(PROTOCOL_VERSION, "a"), worker=True)
    assert [type(effect) for effect in announced].count(Ready) == 1
    assert scene.cluster.is_ready


def test_a_heartbeat_before_the_hello_means_nothing() -> None:
    scene = Scene()
    assert scene.say("a", Heartbeat(1)) == []
    assert not scene.cluster.devices["a"].is_present


def test_tokens_of_a_device_that_is_not_the_source_are_ignored() -> None:
    scene = Scene().ready()
    session = scene.open()
    scene.say("b", TokenEvent(session, 0, 1), worker=True)
    assert scene.read[session] == []


def test_a_silent_device_fails_the_sessions_that_name_it_and_comes_back() -> None:
    scene = Scene().ready()
    running, waiting = scene.open(), scene.open()
    scene.settle()
    scene.now = DEVICE_LOST_S - 0.5
    for name in "ac":
        scene.say(name, Heartbeat(1))
    scene.tick(1.0)
    for session in (running, waiting):
        (error,) = scene.read[session]
        assert isinstance(error, EngineError)
        assert (error.code, error.detail) == ("device_lost", "device b is lost")
    assert scene.cluster.devices["b"].state.value == "lost"
    scene.settle()
    scene.say("b", Heartbeat(2))
    scene.settle()
    assert scene.cluster.is_ready


def silent_for(scene: Scene, seconds: float, silent: str) -> None:
    """All other devices are heard every second meanwhile."""
    until = scene.now + seconds
    while scene.now < until:
        scene.tick(min(1.0, until - scene.now))
        for name in set(NAMES) - set(silent):
            scene.say(name, Heartbeat(1))


def test_a_suspected_device_costs_no_session_and_those_that_wait_go_on_when_it_is_heard() -> None:
    scene = Scene().ready()
    running = scene.open(max_tokens=1)
    scene.settle()
    silent_for(scene, DEVICE_SUSPECT_S + 0.5, "b")
    health = scene.cluster.health()
    assert (health.ready, health.devices_connected) == (False, 3)
    assert health.detail == "sessions wait; b was not heard for a while"
    scene.token(running)
    assert isinstance(scene.read[running][-1], SessionEnded)
    waiting = scene.open()
    scene.settle()
    assert scene.agents["a"].running == {}
    assert (scene.cluster.load().rows, scene.cluster.sessions.queued) == (0, 1)
    scene.say("b", Heartbeat(2))
    scene.settle()
    assert list(scene.agents["a"].running) == [waiting]
    assert scene.cluster.health().ready
    warned = [notice.detail for notice in scene.notices if "b is" in notice.detail]
    assert [detail.split(":")[0] for detail in warned] == ["b is suspected", "b is heard again"]


def test_who_waits_for_a_suspected_device_is_told_when_it_is_lost() -> None:
    scene = Scene().ready()
    silent_for(scene, DEVICE_SUSPECT_S + 0.5, "b")
    waiting = scene.open()
    silent_for(scene, DEVICE_LOST_S - DEVICE_SUSPECT_S, "b")
    (error,) = scene.read[waiting]
    assert isinstance(error, EngineError)
    assert error.code == "device_lost"


def test_a_restarted_worker_is_loaded_again_at_its_new_endpoint() -> None:
    scene = Scene().ready()
    session = scene.open()
    scene.settle()
    scene.say("c", WorkerRestarted("c: worker was killed by SIGSEGV", "tcp://c:77"))
    (error,) = scene.read[session]
    assert isinstance(error, EngineError)
    assert error.code == "worker_lost"
    assert "SIGSEGV" in error.detail
    assert [type(s.message) for s in scene.sent if s.origin == b"c:0:0" and isinstance(s.message, Load)] == [Load]
    scene.settle()
    (opened,) = scene.agents["a"].micro_batches.values()
    assert opened.stages[2].endpoint == "tcp://c:77"


@pytest.mark.parametrize("source_first", [True, False])
def test_a_broken_micro_batch_is_replaced_once_and_the_queue_goes_on(source_first: bool) -> None:
    scene = Scene().ready()
    running, waiting = scene.open(), scene.open()
    scene.settle()
    (number,) = scene.agents["a"].micro_batches
    scene.agents["a"].running.clear()
    reports: list[tuple[Inbound, bool]] = [
        (SessionFailed(running, "frame_refused", "crc: at b"), True),
        (Failed("micro-batch", "frame_refused", "a: crc: at b", number), False),
    ]
    epochs = len(scene.epochs)
    for message, worker in reports if source_first else reports[::-1]:
        scene.say("a", message, worker=worker)
        scene.settle()
    (error,) = scene.read[running]
    assert isinstance(error, EngineError)
    assert error.code == "frame_refused"
    assert len(scene.epochs) == epochs + 3
    assert list(scene.agents["a"].running) == [waiting]
    assert scene.cluster.deployment.phase is Phase.READY


def test_a_session_that_fails_by_itself_leaves_the_micro_batch_open() -> None:
    scene = Scene().ready()
    session = scene.open()
    scene.settle()
    epochs = len(scene.epochs)
    scene.say("a", SessionFailed(session, "agent_error", "a prompt of 70 tokens does not fit"), worker=True)
    scene.settle()
    assert len(scene.epochs) == epochs
    assert scene.cluster.is_ready


def test_source_workers_hear_from_the_coordinator_every_second() -> None:
    scene = Scene().ready()
    for _ in range(41):
        scene.tick(0.25)
        for name in NAMES:
            scene.say(name, Heartbeat(1))
    assert len(scene.messages("a", CoordinatorAlive)) in (10, 11)


def test_shutting_down_ends_sessions_and_closes_the_micro_batch() -> None:
    scene = Scene().ready()
    running, waiting = scene.open(), scene.open()
    scene.settle()
    scene.take(scene.cluster.shut_down(scene.now))
    assert scene.read[running] == [SessionEnded(running, "cancelled", 0)]
    assert scene.read[waiting] == [SessionEnded(waiting, "cancelled", 0)]
    assert scene.messages("a", CancelSession) == [CancelSession(running)]
    assert all(scene.messages(name, CloseMicroBatch) for name in NAMES)
