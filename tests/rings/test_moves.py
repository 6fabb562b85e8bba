"""A split point that moves under running sessions: tokens are those of one process that is cut where they were."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.compute.damage import damage
from agent.wire.codec import FrameKind
from agent.wire.messages import (
    MicroBatchOpened,
    OpenSession,
    SessionEnded,
    SessionMoved,
    SplitKept,
    SplitMoved,
)
from planner.channel import Channel, ChannelState
from planner.types import LayerRange, Pipeline
from tests.fakes.fake_executor import VOCABULARY, FakeExecutor, sampled_tokens
from tests.fakes.ring import Ring, session

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
) -> Ring:
    """The source may run [0, 4), the stage behind it [1, ...); cut at 2 at first."""
    ring = Ring(LAYERS, slots=4, context=context)
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


def jobs(ring: Ring, device: str, kind: FrameKind) -> list:
    from tests.fakes.ring import Ran

    return [
        p.effect.job
        for p in ring.journal
        if p.device == device and isinstance(p.effect, Ran) and p.effect.job.kind is kind
    ]


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
