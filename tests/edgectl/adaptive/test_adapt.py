"""Splits that move, in scripted scenes: when a decision is made, what is asked, and what becomes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.messages import (
    PROTOCOL_VERSION,
    Failed,
    Heartbeat,
    Load,
    MoveSplit,
    OpenMicroBatch,
    OpenSession,
    SessionMoved,
    SplitKept,
    SplitMoved,
    WorkerHello,
)
from edgectl.adaptive.adapt import MOVE_PATIENCE_S
from edgectl.adaptive.decision import AdaptiveSettings
from edgectl.adaptive.guards import Limits
from edgectl.adaptive.plan import widen
from edgectl.cluster_settings import ClusterSettings
from edgectl.deploy import Phase
from planner.channel import Channel, ChannelState
from planner.model_spec import parse_config
from tests.fakes.fake_agents import Scene, plan_of, route_of
from tests.fakes.scripted_controller import Scripted, adapter_of, adaptive_scene, moves, split, state, tokens, wide

CONFIG = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l" / "config.json"
SPEC = parse_config(json.loads(CONFIG.read_text()))


def test_a_micro_batch_is_opened_and_loaded_for_the_splits_it_may_have() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    opened = scene.agents["a"].micro_batches[1]
    assert opened.split_points == (1, 2, 3, 4, 5)
    assert [(stage.start, stage.stop) for stage in opened.stages] == [(0, 3), (3, 6)]
    for name, resident, cuts in (("a", ((0, 5),), (1, 2, 3, 4)), ("b", ((1, 6),), (2, 3, 4, 5))):
        loaded = scene.agents[name].loaded
        assert isinstance(loaded, Load)
        assert (loaded.resident, loaded.cuts) == (resident, cuts)


def test_it_decides_when_a_session_begins_and_once_every_interval_of_its_tokens() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    scene.settle()
    assert len(controller.seen) == 1
    tokens(scene, 3)
    assert len(controller.seen) == 1
    tokens(scene, 9)
    assert len(controller.seen) == 4
    # Two sessions: an interval of each is twice as many tokens.
    scene.open(max_tokens=40)
    scene.settle()
    tokens(scene, 7)
    assert len(controller.seen) == 4
    tokens(scene, 1)
    assert len(controller.seen) == 5
    assert state(scene) == (3, "stay", "as the script says")


def test_a_running_session_moves_and_its_schedule_says_from_where() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    session = scene.open(max_tokens=12)
    scene.settle()
    tokens(scene, 3)
    controller.split = 5
    tokens(scene, 1)
    assert moves(scene) == [MoveSplit(1, 5)]
    assert split(scene) == 3
    scene.settle()
    assert split(scene) == 5
    controller.split = None
    tokens(scene, 8)
    (ended,) = scene.cluster.sessions.schedules
    assert (ended.session, ended.prompt_tokens, ended.tokens) == (session, 2, 12)
    assert ended.entries == ((0, 3), (6, 5))
    report = adapter_of(scene).report()
    assert (report.moves["moved"], report.moved_bytes) == (1, 4096)
    assert adapter_of(scene).around.move_rates == {("a", "b"): 4096 / 0.01}
    assert [event.index for event in scene.read[session][:-1]] == list(range(12))  # type: ignore[attr-defined]


def test_an_idle_micro_batch_moves_before_its_first_session_begins() -> None:
    scene = adaptive_scene(Scripted(split=1))
    session = scene.open(max_tokens=2)
    kinds = [type(send.message) for send in scene.sent]
    assert kinds.index(MoveSplit) < kinds.index(OpenSession)
    scene.settle()
    tokens(scene, 2)
    (ended,) = scene.cluster.sessions.schedules
    assert (ended.session, ended.entries) == (session, ((0, 1),))


def test_a_session_begins_where_the_last_one_ended() -> None:
    controller = Scripted(split=1)
    scene = adaptive_scene(controller)
    scene.open(max_tokens=2)
    scene.settle()
    controller.split = None
    tokens(scene, 2)
    scene.open(max_tokens=2)
    scene.settle()
    tokens(scene, 2)
    assert [ended.entries for ended in scene.cluster.sessions.schedules] == [((0, 1),), ((0, 1),)]


def test_what_is_observed_is_the_channel_that_the_next_positions_meet() -> None:
    states = tuple(ChannelState(loss=0.01 * position, sigma=position, m=1.0 + position) for position in range(20))
    controller = Scripted()
    scene = adaptive_scene(controller, channels={("a", "b"): Channel(states)})
    scene.open(max_tokens=40)
    scene.settle()
    tokens(scene, 4)
    first, second = controller.seen
    assert (first.loss, first.sigma, first.m) == (0.0, 0.0, 1.0)
    # Two of the prompt and four that were made: the next token's position is 6.
    assert second.loss == pytest.approx(0.06)
    assert (second.sigma, second.m) == (6.0, 7.0)


def test_it_waits_between_moves_and_one_move_at_a_time_goes_over_a_link() -> None:
    controller = Scripted(split=5)
    scene = adaptive_scene(controller, wide(micro_batches=2, rows=1))
    first, second = scene.open(max_tokens=40), scene.open(max_tokens=40)
    assert len(moves(scene)) == 1
    assert state(scene, 1)[1:] == ("under-way", "micro-batch 1 moves to split 5")
    scene.settle()
    tokens(scene, 1, second)
    scene.settle()
    assert (split(scene, 0), split(scene, 1)) == (5, 5)
    controller.split = 2
    tokens(scene, 4, second)
    assert state(scene, 1)[1:] == ("dwell", "it moved 4 tokens ago; 8 are waited")
    tokens(scene, 4, second)
    assert moves(scene) == [MoveSplit(3, 2)]
    tokens(scene, 12, first)
    assert state(scene, 0)[1] == "under-way"


def test_who_waited_for_a_link_is_next() -> None:
    scene = adaptive_scene(Scripted(split=5), wide(micro_batches=2, rows=1))
    _, second = scene.open(max_tokens=40), scene.open(max_tokens=40)
    assert state(scene, 1)[1] == "under-way"
    scene.settle()
    tokens(scene, 1, second)
    assert moves(scene) == [MoveSplit(3, 5)]


def test_routes_over_other_links_move_at_the_same_time() -> None:
    scene = adaptive_scene(Scripted(split=5), wide(routes=2, rows=1))
    scene.open(max_tokens=40)
    scene.open(max_tokens=40)
    assert {move.micro_batch for move in moves(scene)} == {1, 3}


def test_shadow_mode_says_what_it_would_do_and_does_nothing() -> None:
    controller = Scripted()
    limits = Limits(interval_tokens=4, dwell_tokens=8, is_shadow=True)
    scene = adaptive_scene(controller, limits=limits)
    scene.open(max_tokens=40)
    scene.settle()
    controller.split = 4
    tokens(scene, 12)
    assert moves(scene) == []
    told = [notice.detail for notice in scene.notices if "would move" in notice.detail]
    assert told == ["micro-batch 1 would move from split 3 to 4: shadow: as the script says"]
    assert state(scene) == (4, "shadow", "shadow: as the script says")
    assert adapter_of(scene).report().held["shadow"] == 3


def test_a_move_that_was_not_carried_out_is_told_and_not_asked_for_again_at_once() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    session = scene.open(max_tokens=40)
    scene.settle()
    scene.agents["a"].moves = "kept"
    controller.split = 4
    tokens(scene, 4)
    scene.settle()
    assert split(scene) == 3
    assert "not moved to split 4: answer_timeout: a: nobody answered" in scene.notices[-1].detail
    tokens(scene, 8)
    assert state(scene)[1] == "back-off"
    assert "nobody answered" in state(scene)[2]
    scene.agents["a"].moves = "carried out"
    tokens(scene, 4)
    scene.settle()
    assert split(scene) == 4
    report = adapter_of(scene).report()
    assert (report.moves["kept"], report.moves["moved"]) == (1, 1)
    assert len(scene.read[session]) == 16


def test_news_of_another_move_than_the_present_one_ends_nothing() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    scene.settle()
    scene.agents["a"].moves = "silence"
    controller.split = 4
    tokens(scene, 4)
    scene.say("a", SplitKept(1, 2, "superseded", "a: moves to 4 instead"), worker=True)
    assert adapter_of(scene).report().moves["kept"] == 0
    scene.say("a", SplitKept(1, 4, "move_late", "a: the link is too slow"), worker=True)
    assert adapter_of(scene).report().moves["kept"] == 1


def test_a_move_nobody_answers_is_given_up_and_counts_if_it_comes_after_all() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    scene.settle()
    scene.agents["a"].moves = "silence"
    controller.split = 4
    tokens(scene, 4)
    scene.settle()
    scene.now += MOVE_PATIENCE_S + 1
    for name in "abc":
        scene.say(name, Heartbeat(1))
    scene.tick(0.1)
    assert adapter_of(scene).report().moves["unanswered"] == 1
    scene.say("a", SplitMoved(1, 4, 10, 0.1), worker=True)
    assert split(scene) == 4


def test_a_connection_that_broke_is_asked_again_and_said_twice_counts_once() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    scene.settle()
    controller.split = 4
    tokens(scene, 4)
    scene.sent.clear()
    scene.say("a", WorkerHello(PROTOCOL_VERSION, "a"), worker=True)
    assert moves(scene) == [MoveSplit(1, 4)]
    scene.settle()
    scene.say("a", SplitMoved(1, 4, 0, 0.0), worker=True)
    assert (split(scene), adapter_of(scene).report().moves["moved"]) == (4, 1)


def test_a_micro_batch_that_broke_opens_again_where_it_was_split_and_forgets_its_move() -> None:
    controller = Scripted(split=5)
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    scene.settle()
    tokens(scene, 8)
    controller.split = 1
    scene.agents["a"].moves = "silence"
    tokens(scene, 4)
    assert moves(scene) == [MoveSplit(1, 1)]
    scene.say("a", Failed("micro-batch", "frame_refused", "b refused", 1))
    (opened,) = [s.message for s in scene.sent if isinstance(s.message, OpenMicroBatch) and s.origin.startswith(b"a:")]
    assert [(stage.start, stage.stop) for stage in opened.stages] == [(0, 5), (5, 6)]
    scene.settle()
    scene.agents["a"].moves = "carried out"
    scene.open(max_tokens=4)
    scene.settle()
    assert adapter_of(scene).report().moves["broken"] == 1
    assert split(scene) == 1


def test_a_device_that_started_again_has_the_plans_splits() -> None:
    scene = adaptive_scene(Scripted(split=5))
    scene.open(max_tokens=40)
    scene.settle()
    assert split(scene) == 5
    scene.agents["b"].life += 1
    scene.connect("b")
    scene.settle()
    assert split(scene) == 3
    assert scene.agents["a"].micro_batches[1].stages[0].stop == 3
    assert state(scene) == (None, None, "no token yet")


@pytest.mark.parametrize(
    "event",
    [SplitMoved(1, 99, 1, 0.1), SplitMoved(77, 4, 1, 0.1), SplitMoved(-1, -1, -1, -1.0)],
)
def test_a_source_that_makes_moves_up_is_not_believed(event: SplitMoved) -> None:
    scene = adaptive_scene(Scripted())
    scene.open(max_tokens=40)
    scene.settle()
    scene.say("a", event, worker=True)
    assert split(scene) == 3


def test_moves_of_another_device_or_an_old_connection_are_not_used() -> None:
    scene = adaptive_scene(Scripted())
    session = scene.open(max_tokens=40)
    scene.settle()
    scene.say("b", SplitMoved(1, 4, 1, 0.1), worker=True)
    scene.say("a", SplitMoved(1, 4, 1, 0.1))
    scene.say("b", SessionMoved(session, 3, 4), worker=True)
    record = scene.cluster.sessions.find(session)
    assert record is not None
    assert record.schedule is not None
    assert (split(scene), record.schedule.entries) == (3, ((0, 3),))


@pytest.mark.parametrize(("position", "to"), [(7, 4), (-1, 4), (3, 6), (3, 0), (3, 1 << 70)])
def test_a_session_that_moved_to_nowhere_is_ended_with_the_error(position: int, to: int) -> None:
    scene = adaptive_scene(Scripted())
    session = scene.open(max_tokens=4)
    scene.settle()
    scene.say("a", SessionMoved(session, position, to), worker=True)
    assert f"a move at position {position} to split {to}" in str(scene.read[session][-1])


def test_a_plan_of_one_device_has_nothing_to_split_and_says_so() -> None:
    adaptive = AdaptiveSettings(Scripted(split=1), 1000)
    order_splits = (1, 2, 3)
    scene = Scene(lambda _: plan_of(route_of("a")), ClusterSettings(adaptive=adaptive), order_splits)
    deployment = scene.cluster.deployment
    deployment.order = replace(deployment.order, widen=lambda plan: widen(plan, SPEC, order_splits))
    scene.connect("a", "b", "c")
    scene.settle()
    assert any("nothing can be split" in notice.detail for notice in scene.notices)
    session = scene.open(max_tokens=3)
    scene.settle()
    tokens(scene, 3)
    assert len(scene.read[session]) == 4
    assert adapter_of(scene).report().batches == ()


def test_devices_too_small_for_any_split_are_a_plan_that_does_not_fit() -> None:
    adaptive = AdaptiveSettings(Scripted(split=1), 1000)
    scene = Scene(wide(), ClusterSettings(adaptive=adaptive), (2, 3))
    deployment = scene.cluster.deployment
    deployment.order = replace(deployment.order, widen=lambda plan: widen(plan, SPEC, (2, 3)))
    scene.connect("a", "b", "c")
    scene.settle()
    assert deployment.phase is Phase.REFUSED
    assert (deployment.code, "goes without split 3: a is" in deployment.detail) == ("out_of_memory", True)


def test_a_cluster_without_a_policy_has_no_splits_to_move() -> None:
    scene = Scene().ready()
    scene.open()
    scene.settle()
    scene.say("a", SplitMoved(1, 4, 1, 0.1), worker=True)
    tokens(scene, 3)
    assert scene.cluster.adapter is None
    assert [ended.entries for ended in scene.cluster.sessions.schedules] == [((0, 2),)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("tttttmkosrbc"), st.integers(0, 6)), max_size=60))
def test_whatever_happens_the_split_is_one_the_devices_hold_and_schedules_end_in_it(
    script: list[tuple[str, int]],
) -> None:
    """t a token, m another proposal, k and o whether moves are carried out, s a session, r a reconnect, b a break."""
    controller = Scripted()
    scene = adaptive_scene(controller, wide(micro_batches=2, rows=2))
    source = scene.agents["a"]
    for what, number in script:
        running = list(source.running)
        if what == "t" and running:
            scene.now += 0.02
            scene.token(running[number % len(running)])
        elif what == "m":
            controller.split = number
        elif what in "ko":
            source.moves = "kept" if what == "k" else "carried out"
        elif what == "s":
            scene.open(max_tokens=20)
        elif what == "r":
            scene.say("a", WorkerHello(PROTOCOL_VERSION, "a"), worker=True)
        elif what == "b" and source.micro_batches:
            scene.say("a", Failed("micro-batch", "frame_refused", "broke", min(source.micro_batches)))
        elif what == "c" and running:
            scene.take(scene.cluster.cancel(running[0], scene.now))
        scene.settle()
        for route in scene.cluster.deployment.routes:
            for batch in route.micro_batches:
                assert batch.split in route.split_points
                assert source.splits.get(batch.number, batch.split) == batch.split
                for record in scene.cluster.sessions.seated(batch.number):
                    assert record.schedule is not None
                    assert record.schedule.split == batch.split
                assert adapter_of(scene).state_of(batch).target is None
