"""The coordinator with many rows, micro-batches and routes: who is seated where, who fails with whom, who is let in."""

from __future__ import annotations

import pytest

from agent.wire.addresses import BulkSource, LinkShape
from agent.wire.messages import (
    DEVICE_LOST_S,
    DEVICE_SUSPECT_S,
    Failed,
    Heartbeat,
    Load,
    LoadProgress,
    SessionEnded,
    SessionFailed,
    TokenEvent,
    Welcome,
    WorkerRestarted,
)
from edgectl.cluster_settings import ClusterSettings
from edgectl.engine import Claim, EngineError
from edgectl.routes import GIVEN_UP_S, MAX_REOPENINGS, BatchState
from planner.channel import erasing
from tests.fakes.fake_agents import NAMES, Agent, Scene, rows_of, two_routes, two_sources


def test_sessions_fill_every_row_of_every_micro_batch() -> None:
    scene = Scene(rows_of(2, 4)).ready()
    sessions = [scene.open() for _ in range(9)]
    scene.settle()
    agent = scene.agents["a"]
    assert set(agent.running) == set(sessions[:8])
    assert sorted(len(agent.sessions_of(number)) for number in agent.micro_batches) == [4, 4]
    for _ in range(3):
        scene.token(sessions[3])
    scene.settle()
    assert sessions[8] in agent.running


def test_a_broken_micro_batch_opens_again_alone() -> None:
    scene = Scene(rows_of(2, 1)).ready()
    one, other, waiting = scene.open(), scene.open(), scene.open()
    scene.settle()
    broken = scene.agents["a"].running[one].micro_batch
    spared = scene.agents["a"].running[other].micro_batch
    epochs = len(scene.epochs)
    scene.say("a", Failed("micro-batch", "answer_timeout", "late", broken))
    assert isinstance(scene.read[one][-1], EngineError)
    assert scene.cluster.is_ready
    scene.settle()
    assert len(scene.epochs) == epochs + len(NAMES)
    assert set(scene.agents["a"].running) == {other, waiting}
    assert scene.agents["a"].running[other].micro_batch == spared
    assert scene.agents["a"].running[waiting].micro_batch not in (broken, spared)


def test_a_lost_device_costs_the_sessions_of_its_routes_only() -> None:
    scene = Scene(two_routes).ready()
    sessions = [scene.open() for _ in range(6)]
    scene.settle()
    by_c = [name for name in scene.agents["a"].running if scene.route_of(name) == ("a", "c")]
    scene.now = DEVICE_LOST_S - 0.5
    for name in "ab":
        scene.say(name, Heartbeat(1))
    scene.tick(1.0)
    scene.settle()
    failed = [name for name in sessions if scene.read[name]]
    assert failed == by_c
    assert len(by_c) == 1
    assert scene.cluster.is_ready
    assert set(scene.agents["a"].running) == set(sessions[:5]) - set(by_c), "the last one waits for a row of a and b"
    assert not scene.messages("b", Load)
    scene.agents["c"] = Agent("c", 1)
    scene.connect("c")
    scene.settle()
    assert scene.route_of(sessions[5]) == ("a", "c")


def test_no_session_begins_on_the_route_of_a_suspected_device_while_another_is_there() -> None:
    scene = Scene(two_routes).ready()
    for _ in range(4):
        for name in "ac":
            scene.say(name, Heartbeat(1))
        scene.tick(DEVICE_SUSPECT_S / 3)
    assert scene.cluster.health().ready
    sessions = [scene.open() for _ in range(3)]
    scene.settle()
    assert list(scene.agents["a"].running) == sessions[:1]
    assert scene.route_of(sessions[0]) == ("a", "c")
    assert (scene.cluster.load().rows, scene.cluster.load().rows_in_use, scene.cluster.sessions.queued) == (1, 1, 2)
    scene.say("b", Heartbeat(1))
    scene.settle()
    assert {scene.route_of(session) for session in sessions[1:]} == {("a", "b")}


def test_a_lost_source_takes_its_routes_and_no_other() -> None:
    scene = Scene(two_sources).ready()
    sessions = [scene.open() for _ in range(4)]
    scene.settle()
    assert (len(scene.agents["a"].running), len(scene.agents["c"].running)) == (2, 2)
    scene.agents["a"] = Agent("a", 1)
    scene.connect("a")
    lost = {name for name in sessions if scene.read[name]}
    assert lost == set(sessions) - set(scene.agents["c"].running)
    scene.settle()
    again = [scene.open() for _ in range(2)]
    scene.settle()
    assert set(scene.agents["a"].running) == set(again)
    scene.token(next(iter(scene.agents["c"].running)))
    assert isinstance(scene.read[next(iter(scene.agents["c"].running))][-1], TokenEvent)


def test_a_device_that_cannot_load_leaves_the_other_route_to_serve() -> None:
    scene = Scene(two_sources)
    scene.connect(*NAMES)
    scene.say("b", Failed("load", "out_of_memory", "b: 5 MiB short"))
    scene.sent = [send for send in scene.sent if not send.origin.startswith(b"b:")]
    scene.settle()
    assert scene.cluster.is_ready
    scene.open()
    scene.settle()
    assert len(scene.agents["c"].running) == 1
    assert scene.cluster.devices["b"].problem == "out_of_memory: b: 5 MiB short"
    scene.agents["b"] = Agent("b", 1)
    scene.connect("b")
    scene.settle()
    assert {seat.source for seat in scene.cluster.deployment.seats()} == {"a", "c"}


def test_one_key_is_limited_and_another_is_not() -> None:
    scene = Scene(rows_of(1, 4), ClusterSettings(max_sessions_per_key=2)).ready()
    first = scene.open(claim=Claim("k"))
    scene.open(claim=Claim("k"))
    with pytest.raises(EngineError, match="2 sessions of this key") as refused:
        scene.open(claim=Claim("k"))
    assert (refused.value.code, refused.value.retry_after_s) == ("too_many_sessions", None)
    scene.open(claim=Claim("other"))
    scene.take(scene.cluster.cancel(first, scene.now))
    scene.open(claim=Claim("k"))


def test_a_full_queue_says_when_to_come_back_by_the_rate_at_which_rows_come_free() -> None:
    scene = Scene(rows_of(1, 2), ClusterSettings(max_queued=4)).ready()
    sessions = [scene.open(max_tokens=1) for _ in range(6)]
    scene.settle()
    with pytest.raises(EngineError, match="queue_full") as refused:
        scene.open()
    assert refused.value.retry_after_s is None
    scene.now += 10.0
    scene.token(sessions[0])
    scene.open()
    with pytest.raises(EngineError, match="4 sessions wait already, at most 4") as refused:
        scene.open()
    assert refused.value.retry_after_s == 10.0, "two of four have had their turn when both rows came free once"
    assert scene.cluster.load().expected_wait_s == 25.0


def test_a_key_that_fills_the_queue_keeps_no_other_out_of_it() -> None:
    scene = Scene(rows_of(1, 1), ClusterSettings(max_queued=3)).ready()
    for _ in range(4):
        scene.open(claim=Claim("many"))
    with pytest.raises(EngineError, match="queue_full"):
        scene.open(claim=Claim("many"))
    scene.open(claim=Claim("one"))
    for key in ("one", "many"):
        with pytest.raises(EngineError, match="4 sessions wait already, at most 3"):
            scene.open(claim=Claim(key))
    assert scene.cluster.load().queued_by_key == {"many": 3, "one": 1}


def test_whoever_wants_no_queue_has_none() -> None:
    scene = Scene(rows_of(1, 1), ClusterSettings(max_queued=0)).ready()
    scene.open(claim=Claim("one"))
    with pytest.raises(EngineError, match="queue_full"):
        scene.open(claim=Claim("other"))


def test_a_device_that_fetches_its_layers_is_named_once_for_every_load() -> None:
    scene = Scene()
    scene.connect(*NAMES)
    for done in range(3):
        scene.say("b", LoadProgress("m", done, 2, 10 * done, 30))
        scene.say("c", LoadProgress("m", done, 2))
    named = [notice.detail for notice in scene.notices if "fetches" in notice.detail]
    assert named == ["b fetches its layers: it has no copy of m, or one that differs from ours"]
    scene.agents["b"] = Agent("b", 1)
    scene.connect("b")
    scene.say("b", LoadProgress("m", 0, 2, 0, 30))
    assert [notice.detail for notice in scene.notices if "fetches" in notice.detail] == named * 2


def test_what_a_device_could_not_take_is_said_whatever_it_was() -> None:
    scene = Scene().ready()
    scene.say("b", Failed("welcome", "bad_config", "b: emulated link to c: latency_ms is -1"))
    assert scene.notices[-1].detail == "b: emulated link to c: latency_ms is -1 (it was sent welcome)"
    assert scene.cluster.is_ready


def test_a_session_longer_than_the_context_never_waits_for_a_row() -> None:
    scene = Scene().ready()
    with pytest.raises(EngineError, match="2 tokens and 63 more, the context is 64") as refused:
        scene.open(max_tokens=63)
    assert refused.value.code == "context_length_exceeded"
    scene.open(max_tokens=62)


def test_agents_are_told_of_links_channels_and_sources() -> None:
    links = {"a": (LinkShape("b", bytes_per_s=1e6),)}
    bulk = BulkSource("", "tcp://coordinator:1", "key")
    settings = ClusterSettings(links=links, channels={("a", "b"): erasing(0.25, 4)}, bulk=bulk)
    scene = Scene(settings=settings)
    scene.connect(*NAMES)
    (welcome,) = scene.messages("a", Welcome)
    assert isinstance(welcome, Welcome)
    assert welcome.links == links["a"]
    (load,) = scene.messages("c", Load)
    assert isinstance(load, Load)
    assert load.sources == (bulk,)
    scene.settle()
    (opened,) = scene.agents["b"].micro_batches.values()
    assert [stage.channel for stage in opened.stages] == [None, erasing(0.25, 4), None]


def test_other_sources_alone_are_no_reason_to_load_again() -> None:
    scene = Scene(settings=ClusterSettings(bulk=BulkSource("", "tcp://coordinator:1", "key"))).ready()
    scene.sent.clear()
    scene.say("b", WorkerRestarted("killed", "tcp://b:2"))
    assert not scene.messages("a", Load)
    assert len(scene.messages("b", Load)) == 1


def test_an_opening_that_was_lost_with_a_connection_is_sent_again() -> None:
    scene = Scene(rows_of(2, 1)).ready()
    lost = scene.open()
    scene.settle()
    number = scene.agents["a"].running[lost].micro_batch
    scene.say("a", Failed("micro-batch", "answer_timeout", "late", number))
    scene.sent = [send for send in scene.sent if not send.origin.startswith(b"b:")]
    scene.settle()
    assert len(scene.cluster.deployment.seats()) == 1
    scene.agents["b"].connection += 1
    scene.connect("b")
    scene.settle()
    assert len(scene.cluster.deployment.seats()) == 2
    assert len({batch.epoch for agent in scene.agents.values() for batch in agent.micro_batches.values()}) == 2


def test_a_coordinator_closes_whatever_one_before_it_left_open() -> None:
    before = Scene(rows_of(4, 1)).ready()
    after = Scene(rows_of(1, 4))
    after.agents = before.agents
    after.ready()
    for agent in after.agents.values():
        assert [opened.rows for opened in agent.micro_batches.values()] == [4]


def test_without_a_queue_sessions_run_while_there_are_rows() -> None:
    scene = Scene(rows_of(1, 2), ClusterSettings(max_queued=0)).ready()
    sessions = [scene.open(), scene.open()]
    with pytest.raises(EngineError, match="queue_full"):
        scene.open()
    scene.settle()
    assert set(scene.agents["a"].running) == set(sessions)


def test_a_micro_batch_that_was_given_up_is_tried_again_while_others_serve() -> None:
    scene = Scene(rows_of(2, 1)).ready()
    for _ in range(MAX_REOPENINGS + 1):
        number = next(iter(scene.cluster.deployment.micro_batches)).number
        scene.say("a", Failed("micro-batch", "answer_timeout", "late", number))
        scene.settle()
    states = [batch.state for batch in scene.cluster.deployment.micro_batches]
    assert states == [BatchState.GIVEN_UP, BatchState.OPEN]
    assert scene.cluster.is_ready
    for _ in range(int(GIVEN_UP_S) + 1):
        for name in NAMES:
            scene.say(name, Heartbeat(1))
        scene.tick(1.0)
    scene.settle()
    assert {batch.state for batch in scene.cluster.deployment.micro_batches} == {BatchState.OPEN}


def test_who_waits_when_the_last_micro_batch_is_given_up_is_told() -> None:
    scene = Scene().ready()
    sessions = [scene.open() for _ in range(MAX_REOPENINGS + 4)]
    for _ in range(MAX_REOPENINGS + 1):
        scene.settle()
        (batch,) = scene.cluster.deployment.micro_batches
        scene.say("a", Failed("micro-batch", "answer_timeout", "late", batch.number))
    for session in sessions:
        (error,) = scene.read[session]
        assert isinstance(error, EngineError)
        assert error.code == "answer_timeout"
    assert scene.cluster.sessions.queued == 0


def test_a_session_that_its_source_forgot_half_way_fails() -> None:
    scene = Scene().ready()
    session = scene.open()
    scene.settle()
    scene.token()
    scene.say("a", SessionFailed(session, "unknown_session", "a has no session"), worker=True)
    assert isinstance(scene.read[session][-1], EngineError)
    assert scene.cluster.sessions.running == 0


def test_a_session_whose_opening_was_lost_with_a_connection_begins_all_the_same() -> None:
    scene = Scene(rows_of(1, 2)).ready()
    other, lost = scene.open(), scene.open()
    scene.sent = [send for send in scene.sent if getattr(send.message, "session", "") != lost]
    scene.settle()
    assert list(scene.agents["a"].running) == [other]
    for _ in range(3):
        scene.agents["a"].connection += 1
        scene.connect("a")  # Each time it is asked; all three questions arrive.
    for send in scene.sent:
        assert send.origin.startswith(b"a:0:")
    scene.settle()
    assert set(scene.agents["a"].running) == {other, lost}
    for _ in range(3):
        scene.token(lost)
    assert isinstance(scene.read[lost][-1], SessionEnded)
