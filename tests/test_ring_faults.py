"""Three stages under random faults of links and devices: tokens are the oracle's, once each, and nobody is stuck.

A schedule is a string of bytes: most of them let one possible thing happen (which is how frames are delayed against
each other), the others break, repeat, open or cancel something. What TCP cannot do is not done here, but for
duplicates; tests/golden shows the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.wire.messages import (
    EndReason,
    MicroBatchOpened,
    OpenSession,
    Sampling,
    SessionEnded,
    SessionFailed,
    TokenEvent,
)
from planner.types import Codec
from tests.fakes.fake_executor import VOCABULARY
from tests.fakes.ring import Ring, session, three_stages

CONTEXT = 24
LINKS = (("a", "b"), ("b", "c"), ("c", "a"))

SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(seed=7, temperature=30.0),
    Sampling(seed=1, temperature=20.0, frequency_penalty=5.0, presence_penalty=3.0),
    Sampling(seed=2, temperature=9.0, top_k=5, logprobs=True, top_logprobs=2),
)


@st.composite
def sessions(draw: st.DrawFn, name: str) -> OpenSession:
    tokens = st.integers(0, VOCABULARY - 1)
    return session(
        name,
        draw(st.lists(tokens, min_size=1, max_size=CONTEXT - 1)),
        draw(st.integers(1, 12)),
        sampling=draw(st.sampled_from(SAMPLINGS)),
        stop_ids=draw(st.lists(tokens, max_size=2)),
    )


@st.composite
def many_sessions(draw: st.DrawFn) -> list[OpenSession]:
    return [draw(sessions(f"s{index}")) for index in range(draw(st.integers(1, 7)))]


@dataclass
class Chaos:
    """A ring, a coordinator that only counts rows, and faults by number."""

    ring: Ring
    rows: int
    waiting: list[OpenSession]
    opened: dict[str, OpenSession] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    ticks: int = 0

    def running(self) -> list[str]:
        return [name for name in self.opened if self.ring.end_of(name) is None]

    def do(self, number: int) -> None:
        kind, choice = number % 16, number // 16
        device, peer = LINKS[choice % 3]
        match kind:
            case 0:
                self.ring.drop(device, peer)
            case 1 | 2:
                self.ring.reconnect(device, peer)
            case 3:
                if self.ring.links[device, peer].frames:
                    self.ring.duplicate_frame(device, peer)
            case 4:
                self.open()
            case 5:
                if choice % 4 == 0 and self.running():
                    name = self.running()[0]
                    self.cancelled.add(name)
                    self.ring.cancel("a", name)
            case 6:
                if self.ticks < 10:  # less than an answer may be late
                    self.ticks += 1
                    self.ring.tick(0.5)
            case _:
                actions = self.ring.actions()
                if actions:
                    self.ring.perform(actions[choice % len(actions)])

    def open(self) -> None:
        if self.waiting and len(self.running()) < self.rows:
            opened = self.waiting.pop(0)
            self.opened[opened.session] = opened
            self.ring.open_session("a", opened)

    def finish(self) -> None:
        """Every connection comes back, every session gets its row."""
        self.ring.reconnect_all()
        self.ring.settle()
        while self.waiting:
            self.open()
            self.ring.settle()


def check_tokens(chaos: Chaos) -> None:
    ring = chaos.ring
    for name, opened in chaos.opened.items():
        tokens, expected, end = ring.tokens(name), ring.expected(opened), ring.end_of(name)
        if isinstance(end, SessionEnded) and end.reason == "cancelled":
            assert name in chaos.cancelled
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected, name
            reason: EndReason = "stop" if expected[-1] in opened.stop_ids else "length"
            assert end == SessionEnded(name, reason, len(tokens))


def check_everything_is_free(ring: Ring) -> None:
    """All slots can be reserved again, and a session runs in each of the rows."""
    ring.close_micro_batch(1)
    ring.notices.clear()
    ring.open_micro_batch(1, 1000, "abc", rows=ring.slots)
    ring.settle()
    assert [notice for _, notice in ring.notices] == [MicroBatchOpened(1, 1000)] * 3
    last = [session(f"last-{row}", [row, 1, 2]) for row in range(ring.slots)]
    for opened in last:
        ring.open_session("a", opened)
    ring.settle()
    assert [ring.tokens(opened.session) for opened in last] == [ring.expected(opened) for opened in last]


@pytest.mark.parametrize("wire", ["fp16", "fp32", "bf16"])
@given(
    opened=many_sessions(),
    schedule=st.binary(max_size=400),
    rows=st.integers(1, 4),
    chunk=st.integers(3, 7),
)
@example(opened=[session("s0", range(20), 9)], schedule=bytes(range(256)), rows=1, chunk=3)
def test_links_may_break(wire: Codec, opened: list[OpenSession], schedule: bytes, rows: int, chunk: int) -> None:
    ring = three_stages(rows=rows, chunk=chunk, context=CONTEXT, wire=wire)
    chaos = Chaos(ring, rows, list(opened))
    chaos.open()
    for number in schedule:
        chaos.do(number)
    chaos.finish()
    check_tokens(chaos)
    assert [notice for _, notice in ring.notices if not isinstance(notice, MicroBatchOpened)] == []
    assert all("refused" not in counter for name in "abc" for counter in ring.counters(name))
    check_everything_is_free(ring)


@given(
    opened=many_sessions(),
    lives=st.lists(st.tuples(st.binary(max_size=120), st.sampled_from("abc"), st.binary(max_size=40)), max_size=4),
    rows=st.integers(1, 4),
)
def test_devices_may_restart(opened: list[OpenSession], lives: list[tuple[bytes, str, bytes]], rows: int) -> None:
    """After a restart the coordinator opens the micro-batch in a new epoch and every session where its reader is."""
    ring = three_stages(rows=rows, context=CONTEXT)
    waiting = list(opened)
    read: dict[str, list[int]] = {opening.session: [] for opening in opened}
    for epoch, (before, device, after) in enumerate([*lives, (b"", "", b"")], start=2):
        chaos = Chaos(ring, rows, [replace_emitted(opening, read[opening.session]) for opening in waiting])
        chaos.open()
        for number in before:
            if number % 16 != 5:  # nobody cancels here
                chaos.do(number)
        if device:
            ring.restart(device)
            for number in after:
                if number % 16 not in (0, 1, 2, 3, 4, 5):
                    chaos.do(number)
        else:
            chaos.finish()
        finished = take_events(ring, read)
        waiting = [opening for opening in waiting if opening.session not in finished]
        if device:
            ring.open_micro_batch(1, epoch, "abc", rows=rows)
            ring.events.clear()  # the ends of sessions that were cut short by this
            ring.settle()
    assert waiting == []
    assert read == {opening.session: ring.expected(opening) for opening in opened}
    check_everything_is_free(ring)


def replace_emitted(opened: OpenSession, emitted: list[int]) -> OpenSession:
    fields = {name: getattr(opened, name) for name in opened.__struct_fields__}
    return OpenSession(**{**fields, "emitted": tuple(emitted)})


def take_events(ring: Ring, read: dict[str, list[int]]) -> set[str]:
    """Append new tokens to what was read, which must continue it; returns the sessions that came to their end."""
    finished = set()
    for event in ring.events:
        match event:
            case TokenEvent(name, index, token):
                assert index == len(read[name])
                read[name].append(token)
            case SessionEnded(name, reason):
                assert reason != "cancelled"
                finished.add(name)
            case SessionFailed(_, code, detail):
                assert code in {"frame_refused", "unknown_micro_batch"}, detail
    ring.events.clear()
    return finished


@given(
    schedule=st.binary(max_size=200),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["step", "epoch", "micro_batch", "answered", "start_layer", "sample"]), st.integers(0, 3)
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_a_peer_with_a_bug_costs_its_micro_batch_and_no_other(schedule: bytes, changes: list[tuple[str, int]]) -> None:
    """Frames of micro-batch 1 are changed and rightly sealed; micro-batch 2 on the same links does not notice."""
    ring = three_stages(rows=2, context=CONTEXT)
    ring.open_micro_batch(2, 1, "abc", rows=2)
    ring.settle()
    victims = [session(f"v{row}", range(row, row + 9), 4, micro_batch=1) for row in range(2)]
    others = [session(f"o{row}", range(row, row + 9), 4, micro_batch=2) for row in range(2)]
    for opened in victims + others:
        ring.open_session("a", opened)
    pending = list(changes)
    for number in schedule:
        device, peer = LINKS[number % 3]
        frames = ring.frames_under_way(device, peer)
        if pending and number % 4 == 0 and frames and frames[0].micro_batch == 1:
            name, value = pending.pop()
            if name == "micro_batch" and value == 2:
                value = 9  # the others' own predecessor may of course harm them
            ring.edit_frame(device, peer, **{name: bool(value % 2) if name == "sample" else value})
        elif ring.actions():
            ring.perform(ring.actions()[number // 3 % len(ring.actions())])
    ring.settle()
    assert [ring.tokens(opened.session) for opened in others] == [ring.expected(opened) for opened in others]
    for opened in victims:
        tokens = ring.tokens(opened.session)
        assert tokens == ring.expected(opened)[: len(tokens)]


def test_the_faults_are_not_idle() -> None:
    """The schedule of the example above really breaks, repeats and sends again."""
    ring = three_stages(rows=2, chunk=3, context=CONTEXT)
    chaos = Chaos(ring, 2, [session(f"s{n}", range(20), 9) for n in range(3)])
    for number in bytes(range(256)) * 2:
        chaos.do(number)
    chaos.finish()
    check_tokens(chaos)
    dropped = sum(ring.counters(name).get("duplicates_dropped", 0) for name in "abc")
    assert dropped > 3
    assert replace(ring.links["a", "b"]).number > 2
