"""A split point that moves under running sessions: their tokens are those of one process that is cut where they were."""

from __future__ import annotations

import numpy as np
import pytest

from agent.compute.damage import damage
from agent.wire.codec import FrameKind
from agent.wire.messages import OpenSession, SessionMoved, SplitKept, SplitMoved
from planner.channel import Channel, ChannelState
from planner.types import LayerRange
from tests.fakes.fake_executor import FakeExecutor, sampled_tokens
from tests.fakes.ring import Ring, session

LAYERS = 6
POINTS = (1, 2, 3, 4)
LOSSY = Channel((ChannelState(loss=0.2), ChannelState(), ChannelState(loss=0.5)), seed=5, coherence_tokens=3)


def ring_of(
    names: str = "ab", *, rows: int = 2, chunk: int = 4, context: int = 64, channel: Channel | None = LOSSY
) -> Ring:
    """The source may run [0, 4), the stage behind it [1, ...); cut at 2 at first."""
    ring = Ring(LAYERS, slots=4, context=context)
    ring.add_device("a", LayerRange(0, 2), resident=LayerRange(0, 4))
    ring.add_device(
        "b", LayerRange(2, LAYERS if names == "ab" else 5), resident=LayerRange(1, 5 if "c" in names else 6)
    )
    if "c" in names:
        ring.add_device("c", LayerRange(5, LAYERS))
    ring.open_micro_batch(1, 1, names, rows=rows, chunk=chunk, split_points=POINTS, channel=channel)
    ring.settle()
    return ring


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
