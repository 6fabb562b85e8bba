"""A split point that moves under running sessions: tokens are those of one process that is cut where they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.compute.damage import damage
from agent.compute.executor import IDLE
from agent.effects import Job
from agent.wire.codec import Frame, FrameKind
from agent.wire.messages import (
    MicroBatchOpened,
    OpenSession,
    SessionEnded,
    SessionFailed,
    SessionMoved,
    SplitKept,
    SplitMoved,
)
from planner.channel import Channel, ChannelState
from planner.types import LayerRange, Pipeline
from tests.fakes.fake_executor import VOCABULARY, FakeExecutor, sampled_tokens
from tests.fakes.ring import Action, Ran, Ring, session

LAYERS = 6
CONTEXT = 24
POINTS = (1, 2, 3, 4)
LOSSY = Channel((ChannelState(loss=0.2), ChannelState(), ChannelState(loss=0.5)), seed=5, coherence_tokens=3)


def ring_of(
    names: str = "ab",
    *,
    rows: int = 2,
    chunk: int = 4,
    context: int = 64,
    channel: Channel | None = LOSSY,
    pipeline: Pipeline = "no-bubbles",
    slice_bytes: int = 0,
    slots: int = 4,
) -> Ring:
    """The source may run [0, 4), the stage behind it [1, ...); cut at 2 at first."""
    ring = Ring(LAYERS, slots=slots, context=context)
    ring.add_device("a", LayerRange(0, 2), resident=LayerRange(0, 4))
    ring.add_device(
        "b", LayerRange(2, LAYERS if names == "ab" else 5), resident=LayerRange(1, 5 if "c" in names else 6)
    )
    if "c" in names:
        ring.add_device("c", LayerRange(5, LAYERS))
    ring.open_micro_batch(1, 1, names, rows=rows, chunk=chunk, pipeline=pipeline, split_points=POINTS, channel=channel)
    ring.settle()
    if slice_bytes:
        keep_slices_short(ring, slice_bytes)
    return ring


def keep_slices_short(ring: Ring, size: int) -> None:
    """A link is played that takes so many bytes in the time of a slice."""
    micro_batch = ring.members["a"].stage._micro_batches[1]
    assert micro_batch.loop is not None
    handover = micro_batch.loop.handover
    assert handover is not None
    handover._size.bytes = float(size)
    handover._size.learn = lambda *_: None  # type: ignore[method-assign]


def splits_of(ring: Ring, name: str) -> list[tuple[int, int]]:
    """The session's damage schedule: (position, split), as reported."""
    return [(event.position, event.split) for event in ring.of_session(name) if isinstance(event, SessionMoved)]


def offline(ring: Ring, opened: OpenSession, channel: Channel | None = LOSSY) -> list[int]:
    """Tokens of one process that runs every layer, and damages what passes where the session was cut."""
    schedule = splits_of(ring, opened.session)
    whole = FakeExecutor(LAYERS, (LayerRange(0, LAYERS),), slots=1, context=ring.context)

    def feed(token: int, position: int) -> list[int]:
        split = [split for start, split in schedule if start <= position][-1]
        hidden = whole.forward(LayerRange(0, split), whole.embed(np.array([[token]])), 0, [position])
        if channel is not None:
            damage(hidden[0], channel, split, position)
        return [int(value) for value in whole.forward(LayerRange(split, LAYERS), hidden, 0, [position])[0, -1]]

    return sampled_tokens(feed, opened, ring.context)


def outcomes(ring: Ring) -> list[SplitMoved | SplitKept]:
    return [event for event in ring.events if isinstance(event, (SplitMoved, SplitKept))]


def check(ring: Ring, *sessions: OpenSession, channel: Channel | None = LOSSY) -> None:
    for opened in sessions:
        tokens = ring.tokens(opened.session)
        assert tokens == offline(ring, opened, channel), opened.session
        assert len(tokens) == opened.max_tokens


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("target", [1, 3, 4])
def test_running_sessions_move(names: str, target: int) -> None:
    ring = ring_of(names)
    both = [session("s0", range(9), 20), session("s1", [7, 3, 50], 20)]
    for opened in both:
        ring.open_session("a", opened)
    while len(ring.of_session("s1")) < 5:
        ring.perform(ring.actions()[0])
    ring.move_split("a", 1, target)
    ring.settle()
    check(ring, *both)
    (moved,) = outcomes(ring)
    assert isinstance(moved, SplitMoved)
    assert moved.split == target
    assert all([split for _, split in splits_of(ring, opened.session)] == [2, target] for opened in both)
    layers = {job.layers.stop for job in jobs(ring, "a", FrameKind.DECODE)}
    assert layers == {2, target}


def jobs(ring: Ring, device: str, kind: FrameKind) -> list[Job]:
    ran = [each.effect.job for each in ring.journal if each.device == device and isinstance(each.effect, Ran)]
    return [job for job in ran if job.kind is kind]


def step_until(ring: Ring, condition: Callable[[], bool]) -> None:
    while not condition():
        ring.perform(ring.actions()[0])


def test_what_begins_in_mid_move_begins_at_the_new_split_and_a_prompt_changes_between_chunks() -> None:
    """Two splits at a time: rows of both are in the runs' range, and frames of both take turns."""
    ring = ring_of(rows=4, chunk=3, slice_bytes=800)
    first = [session("s0", range(9), 40), session("short", [1], 1), session("s1", range(30), 30)]
    later = [session("s2", range(12), 12), session("s3", [4], 12)]
    for opened in first:
        ring.open_session("a", opened)
    step_until(ring, lambda: len(ring.of_session("s0")) > 3 and ring.end_of("short") is not None)
    ring.move_split("a", 1, 4)
    for opened in later:  # the first of them on the row between the other two
        ring.open_session("a", opened)
    ring.settle()
    check(ring, *first, *later)
    assert [splits_of(ring, opened.session) for opened in later] == [[(0, 4)], [(0, 4)]]
    ((_, before), (position, after)) = splits_of(ring, "s1")
    assert (before, after) == (2, 4)
    splits = [job.layers.stop for job in jobs(ring, "a", FrameKind.DECODE)]
    assert splits != sorted(splits), "frames of both splits took turns"
    assert any(IDLE in job.positions for job in jobs(ring, "b", FrameKind.DECODE) + jobs(ring, "a", FrameKind.DECODE))
    assert position > 0


def test_a_prompt_alone_changes_while_it_is_sent_or_right_after() -> None:
    ring = ring_of(rows=1, chunk=3)
    ring.open_session("a", session("s0", range(40), 4))
    step_until(ring, lambda: len(jobs(ring, "a", FrameKind.PREFILL)) == 3)
    ring.move_split("a", 1, 1)
    ring.settle()
    check(ring, session("s0", range(40), 4))
    (_, (position, split)) = splits_of(ring, "s0")
    assert split == 1
    assert 9 <= position <= 41


def test_what_was_asked_for_a_session_that_is_gone_is_not_written_over_the_next_one() -> None:
    ring = ring_of(rows=1, chunk=8)
    ring.open_session("a", session("gone", range(9), 20))
    step_until(ring, lambda: len(ring.of_session("gone")) > 2)
    ring.move_split("a", 1, 4)
    run = Action("run", "a")
    while not any(frame.kind is FrameKind.TAKE for frame in ring.frames_under_way("a", "b")):
        ring.perform(run if run in ring.actions() else ring.actions()[0])
    ring.cancel("a", "gone")
    opened = session("next", [50, 3, 9, 77, 4, 30], 9)
    ring.open_session("a", opened)
    ring.perform(run)
    assert [job.layers.stop for job in jobs(ring, "a", FrameKind.PREFILL)][-1] == 4, "it has run here already"
    ring.settle()
    check(ring, opened)


@pytest.mark.parametrize("target", [1, 4])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_pools_that_are_unlike_cost_the_move_and_no_session(names: str, target: int) -> None:
    ring = ring_of(names)
    ring.members["b"].executor.kv_type = "fp16"
    both = [session("s0", range(9), 12), session("s1", range(5), 12)]
    for opened in both:
        ring.open_session("a", opened)
    step_until(ring, lambda: len(ring.of_session("s0")) > 3)
    ring.move_split("a", 1, target)
    ring.settle()
    check(ring, *both)
    (kept,) = outcomes(ring)
    assert isinstance(kept, SplitKept)
    assert (kept.code, kept.split) == ("peer_refused", target)
    assert "b: keys and values are fp32, those of this device fp16" in kept.detail
    assert all(splits_of(ring, opened.session) == [(0, 2)] for opened in both)
    assert ring.notices == [(name, MicroBatchOpened(1, 1)) for name in names]


def test_a_link_that_is_too_slow_ends_the_move_and_no_session() -> None:
    """Each step adds as much as a slice takes away: tokens come and the move does not end."""
    ring = ring_of(context=64, slice_bytes=1)
    opened = session("s0", range(20), 40)
    ring.open_session("a", opened)
    step_until(ring, lambda: len(ring.of_session("s0")) > 2)
    ring.move_split("a", 1, 4)
    while not outcomes(ring):
        ring.perform(ring.actions()[0])
        ring.now += 1.0
        for member in ring.members.values():
            member.stage.coordinator_heard(ring.now)
        ring.perform_effects("a", ring.members["a"].stage.tick(ring.now))
    (kept,) = outcomes(ring)
    assert isinstance(kept, SplitKept)
    assert kept.code == "move_late"
    ring.settle()
    check(ring, opened)


@given(
    schedule=st.binary(min_size=20, max_size=200),
    changes=st.lists(
        st.tuples(st.sampled_from(["step", "start_layer", "answered", "position", "generation"]), st.integers(0, 11)),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=40)
def test_a_peer_with_a_bug_costs_its_micro_batch_and_no_other(schedule: bytes, changes: list[tuple[str, int]]) -> None:
    """Frames of micro-batch 1 are changed and rightly sealed while it moves; micro-batch 2 does not notice."""
    ring = ring_of("abc", slots=8)
    ring.open_micro_batch(2, 1, "abc", rows=2, split_points=POINTS, channel=LOSSY)
    victims = [session(f"v{row}", range(row, row + 9), 9, micro_batch=1) for row in range(2)]
    others = [session(f"o{row}", range(row, row + 9), 9, micro_batch=2) for row in range(2)]
    for opened in victims + others:
        ring.open_session("a", opened)
    pending = list(changes)
    for at, number in enumerate(schedule):
        device, peer = ("ab", "bc", "ca")[number % 3]
        frames = ring.frames_under_way(device, peer)
        if pending and number % 4 == 0 and frames and frames[0].micro_batch == 1:
            ring.edit_frame(device, peer, **changed(frames[0], *pending.pop()))
        elif at % 9 == 5:
            ring.move_split("a", 1 + at % 2, POINTS[number % 4])
        elif ring.actions():
            ring.perform(ring.actions()[number // 3 % len(ring.actions())])
    ring.settle()
    check(ring, *others)
    for opened in victims:
        end = ring.end_of(opened.session)
        assert isinstance(end, (SessionEnded, SessionFailed)), "it is not stuck"


def changed(frame: Frame, name: str, value: int) -> dict[str, object]:
    """One field of a frame, made wrong; the frame is still whole, so that its receiver knows whose it is."""
    if name == "position":
        return {"rows": tuple(ref._replace(position=max(0, ref.position + value - 5)) for ref in frame.rows)}
    if name == "generation":
        return {"rows": tuple(ref._replace(generation=value) for ref in frame.rows), "openings": ()}
    return {name: value}


@st.composite
def sessions(draw: st.DrawFn, name: str) -> OpenSession:
    prompt = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=CONTEXT - 1))
    return session(name, prompt, draw(st.integers(1, 12)))


@st.composite
def many_sessions(draw: st.DrawFn) -> list[OpenSession]:
    return [draw(sessions(f"s{index}")) for index in range(draw(st.integers(1, 6)))]


@dataclass
class Chaos:
    """A ring, and faults, moves and sessions by number."""

    ring: Ring
    links: list[tuple[str, str]]
    waiting: list[OpenSession]
    opened: dict[str, OpenSession] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    asked: int = 0
    ticks: int = 0

    def running(self) -> list[str]:
        return [name for name in self.opened if self.ring.end_of(name) is None]

    def do(self, number: int) -> None:
        kind, choice = number % 16, number // 16
        device, peer = self.links[choice % len(self.links)]
        match kind:
            case 0:
                self.ring.drop(device, peer)
            case 1:
                self.ring.reconnect(device, peer)
            case 2:
                if self.ring.links[device, peer].frames:
                    self.ring.duplicate_frame(device, peer)
            case 3:
                self.open()
            case 4 | 5:
                self.asked += 1
                self.ring.move_split("a", 1, POINTS[choice % len(POINTS)])
            case 6:
                if choice % 4 == 0 and self.running():
                    name = self.running()[0]
                    self.cancelled.add(name)
                    self.ring.cancel("a", name)
                elif choice % 4 == 1 and self.ticks < 10:
                    self.ticks += 1
                    self.ring.tick(0.5)
            case _:
                actions = self.ring.actions()
                if actions:
                    self.ring.perform(actions[choice % len(actions)])

    def open(self) -> None:
        if self.waiting and len(self.running()) < 3:
            opened = self.waiting.pop(0)
            self.opened[opened.session] = opened
            self.ring.open_session("a", opened)

    def finish(self) -> None:
        self.ring.reconnect_all()
        self.ring.settle()
        while self.waiting:
            self.open()
            self.ring.settle()


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("pipeline", ["no-bubbles", "sequential"])
@settings(max_examples=30)
@given(
    opened=many_sessions(),
    schedule=st.binary(max_size=300),
    sizes=st.tuples(st.integers(3, 7), st.integers(1, 2000)),
)
@example(opened=[session(f"s{n}", range(20), 9) for n in range(3)], schedule=bytes(range(256)) * 2, sizes=(3, 100))
def test_whatever_happens(
    names: str, pipeline: Pipeline, opened: list[OpenSession], schedule: bytes, sizes: tuple[int, int]
) -> None:
    chunk, size = sizes
    ring = ring_of(names, rows=3, chunk=chunk, context=CONTEXT, pipeline=pipeline, slice_bytes=size)
    links = [(names[i], names[(i + 1) % len(names)]) for i in range(len(names))]
    chaos = Chaos(ring, links, list(opened))
    chaos.open()
    for number in schedule:
        chaos.do(number)
    chaos.finish()
    for each in chaos.opened.values():
        tokens, end = ring.tokens(each.session), ring.end_of(each.session)
        expected = offline(ring, each) if tokens else []
        assert isinstance(end, SessionEnded), end
        assert tokens == expected[: len(tokens)]
        assert each.session in chaos.cancelled if end.reason == "cancelled" else tokens == expected != []
    ring.tick(1.0)
    assert len(outcomes(ring)) <= chaos.asked
    assert [notice for _, notice in ring.notices if not isinstance(notice, MicroBatchOpened)] == []
    assert all("refused" not in counter for name in names for counter in ring.counters(name))
    ring.events.clear()
    ring.move_split("a", 1, 3)
    last = [session(f"last-{row}", [row, 1, 2]) for row in range(3)]
    for each in last:
        ring.open_session("a", each)
    ring.settle()
    check(ring, *last)
    assert all(splits_of(ring, each.session) == [(0, 3)] for each in last)
    assert [(event.split, type(event)) for event in outcomes(ring)] == [(3, SplitMoved)]
