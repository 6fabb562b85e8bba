"""The two tables, the row rules, and a ring of stages over links that break: every step exactly once, in order."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.errors import FrameRefused, RefusalReason
from agent.wire.codec import CodecId, Frame, FrameKind, RowRef
from agent.wire.hop import (
    MAX_KEPT_FRAMES,
    ROW_TABLE,
    STEP_TABLE,
    Incoming,
    RowClaim,
    StepOrder,
    Verdict,
)
from agent.wire.kept_frames import Answers, Outgoing
from planner.types import LayerRange
from tests.fakes.fake_link import FakeLink
from tests.fakes.frames import EPOCH, HIDDEN, frame

CONTEXT = 32


def incoming(rows: int = 4) -> Incoming:
    return Incoming(epoch=EPOCH, rows=rows, context=CONTEXT, hidden_size=HIDDEN, start_layer=8, codec=CodecId.FP16)


def state(receiver: Incoming) -> tuple[object, ...]:
    rows = [(receiver.rows.generation(row), receiver.rows.idle_position(row)) for row in range(len(receiver.rows))]
    return receiver.last, receiver.answered, receiver.heard_at, rows


def refusal(receiver: Incoming, refused: Frame) -> RefusalReason:
    """The reason a frame is refused for, having checked that nothing changed."""
    before = state(receiver)
    with pytest.raises(FrameRefused) as caught:
        receiver.accept(refused, now=99.0)
    assert state(receiver) == before
    return caught.value.reason


def test_the_tables_are_complete() -> None:
    assert set(STEP_TABLE) == {(same, order) for same in (True, False) for order in StepOrder}
    assert set(ROW_TABLE) == {(claim, as_expected) for claim in RowClaim for as_expected in (True, False)}


def test_a_session_from_its_opening_on() -> None:
    receiver = incoming()
    assert receiver.accept(frame(0, (1, 5, 0), tokens=3, opens=True), now=1.0) is Verdict.ACCEPT
    assert receiver.accept(frame(1, (1, 5, 3)), now=2.0) is Verdict.ACCEPT
    assert receiver.idle_position(1) == 4
    assert receiver.idle_position(0) == 0
    assert (receiver.last, receiver.answered, receiver.heard_at) == (1, 0, 2.0)


def test_a_frame_seen_before_is_a_duplicate_whatever_it_says() -> None:
    receiver = incoming()
    receiver.accept(frame(0, (0, 0, 0), opens=True), now=1.0)
    before = state(receiver)
    assert receiver.accept(frame(0, (0, 0, 0), opens=True), now=2.0) is Verdict.DUPLICATE
    assert receiver.accept(replace(frame(0), shape=(9, 9, 9)), now=2.0) is Verdict.DUPLICATE
    assert state(receiver) == before


def test_the_row_rules() -> None:
    receiver = incoming(rows=2)
    assert refusal(receiver, frame(0, (0, 0, 0))) is RefusalReason.GENERATION  # never opened
    receiver.accept(frame(0, (0, 3, 0), tokens=5, opens=True), now=1.0)
    assert refusal(receiver, frame(1, (0, 2, 5))) is RefusalReason.GENERATION
    assert refusal(receiver, frame(1, (0, 4, 5))) is RefusalReason.GENERATION
    assert refusal(receiver, frame(1, (0, 4, 0))) is RefusalReason.GENERATION  # a reuse has to be opened
    assert refusal(receiver, frame(1, (0, 3, 4))) is RefusalReason.POSITION
    assert refusal(receiver, frame(1, (0, 3, 6))) is RefusalReason.POSITION
    assert refusal(receiver, frame(1, (0, 3, 0), opens=True)) is RefusalReason.GENERATION
    assert refusal(receiver, frame(1, (0, 2, 0), opens=True)) is RefusalReason.GENERATION
    assert refusal(receiver, frame(1, (0, 4, 1), opens=True)) is RefusalReason.POSITION
    assert refusal(receiver, frame(1, (2, 0, 0), opens=True)) is RefusalReason.ROW
    assert receiver.accept(frame(1, (0, 4, 0), tokens=2, opens=True), now=1.0) is Verdict.ACCEPT
    assert receiver.idle_position(0) == 2


def test_one_bad_row_keeps_all_rows_where_they_were() -> None:
    receiver = incoming()
    receiver.accept(frame(0, (0, 1, 0), opens=True), now=1.0)
    receiver.accept(frame(1, (1, 1, 0), opens=True), now=1.0)
    assert refusal(receiver, frame(2, (0, 1, 1), (1, 1, 2))) is RefusalReason.POSITION
    assert receiver.accept(frame(2, (0, 1, 1), (1, 1, 1)), now=1.0) is Verdict.ACCEPT


def test_the_context_is_filled_to_its_end_and_not_beyond() -> None:
    receiver = incoming()
    receiver.accept(frame(0, (0, 0, 0), tokens=CONTEXT - 1, opens=True), now=1.0)
    assert refusal(receiver, frame(1, (0, 0, CONTEXT - 1), tokens=2)) is RefusalReason.POSITION
    receiver.accept(frame(1, (0, 0, CONTEXT - 1)), now=1.0)
    assert receiver.idle_position(0) == CONTEXT  # the pool has one position more for the dummy
    assert refusal(receiver, frame(2, (0, 0, CONTEXT))) is RefusalReason.POSITION


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": EPOCH - 1}, RefusalReason.EPOCH),
        ({"epoch": EPOCH + 1}, RefusalReason.EPOCH),
        ({"epoch": EPOCH - 1, "step": 0}, RefusalReason.EPOCH),
        ({"step": 2, "answered": 0}, RefusalReason.GAP),
        ({"answered": 1}, RefusalReason.GAP),
        ({"answered": -1}, RefusalReason.GAP),
        ({"start_layer": 0}, RefusalReason.LAYERS),
        ({"codec": CodecId.FP32}, RefusalReason.SHAPE),
        ({"kind": FrameKind.ANSWER}, RefusalReason.SHAPE),
        ({"shape": (1, 1, HIDDEN + 1)}, RefusalReason.SHAPE),
        ({"shape": (1, 0, HIDDEN)}, RefusalReason.SHAPE),
        ({"shape": (2, 1, HIDDEN)}, RefusalReason.SHAPE),
    ],
)
def test_what_does_not_fit_the_micro_batch_is_refused(change: dict[str, object], reason: RefusalReason) -> None:
    receiver = incoming()
    receiver.accept(frame(0, (0, 0, 0), opens=True), now=1.0)
    receiver.answered = 0
    assert refusal(receiver, replace(frame(1, (0, 0, 1)), **change)) is reason


def test_no_more_frames_may_be_in_flight_than_are_kept() -> None:
    receiver, relay = incoming(), Outgoing()
    for step in range(MAX_KEPT_FRAMES):
        sent = frame(step, (0, 0, step), opens=step == 0, answered=-1)
        receiver.accept(sent, now=0.0)
        relay.keep(sent, now=0.0)
    assert relay.is_full
    row = (0, 0, MAX_KEPT_FRAMES)
    assert refusal(receiver, frame(MAX_KEPT_FRAMES, row, answered=-1)) is RefusalReason.GAP
    receiver.accept(frame(MAX_KEPT_FRAMES, row, answered=0), now=0.0)
    relay.release(0)
    relay.keep(frame(MAX_KEPT_FRAMES, row, answered=0), now=0.0)


CHUNKS = 5
STEPS = 14


class Ring:
    """A source and `stages` further ones, each with the halves of its hops; the last one answers to the source."""

    def __init__(self, stages: int) -> None:
        self.links: list[FakeLink[Frame]] = [FakeLink() for _ in range(stages + 1)]
        self.senders = [Outgoing() for _ in range(stages + 1)]
        self.receivers = [incoming() for _ in range(stages)]
        self.answers = Answers(EPOCH, self.senders[0])
        self.accepted: list[list[int]] = [[] for _ in range(stages + 1)]
        self.next_step = 0
        self.position = 0

    def pump(self) -> None:
        """The source's window: two prefill chunks, one decode frame."""
        while self.next_step < STEPS:
            chunk = self.next_step < CHUNKS
            if self.next_step - self.answers.last > (2 if chunk else 1):
                return
            tokens = 2 if chunk else 1
            row = (0, 1, self.position)
            opens, answered = self.next_step == 0, self.answers.last
            self.send(0, frame(self.next_step, row, tokens=tokens, opens=opens, answered=answered))
            self.next_step += 1
            self.position += tokens

    def send(self, sender: int, sent: Frame) -> None:
        self.senders[sender].keep(sent, now=0.0)
        self.links[sender].send(sent)

    def reconnect(self, sender: int) -> None:
        if self.links[sender].reconnect():
            for kept in self.senders[sender].unanswered():
                self.links[sender].send(kept)

    def deliver(self, link: int, choice: int) -> None:
        arrived = self.links[link].deliver(choice)
        if arrived is None:
            return
        if link == len(self.receivers):
            if self.answers.accept(arrived, now=0.0) is Verdict.ACCEPT:
                self.accepted[link].append(arrived.step)
            return
        is_last = link == len(self.receivers) - 1
        following = self.senders[link + 1]
        if self.receivers[link].accept(arrived, now=0.0) is Verdict.DUPLICATE:
            kept = following.find(arrived.step) if is_last else None
            if kept is not None:
                self.links[link + 1].send(kept)
            return
        self.accepted[link].append(arrived.step)
        following.release(arrived.answered)
        outgoing = replace(arrived, kind=FrameKind.ANSWER, openings=()) if is_last else arrived
        self.send(link + 1, outgoing)

    def heal(self) -> None:
        """Nothing breaks any more: what is under way arrives."""
        for link in range(len(self.links)):
            self.reconnect(link)
        while self.next_step < STEPS or any(map(len, self.links)):
            self.pump()
            for link in range(len(self.links)):
                self.deliver(link, choice=0)


ACTIONS = st.tuples(
    st.sampled_from(("deliver", "deliver", "deliver", "disconnect", "reconnect")), st.integers(0, 3), st.integers(0, 3)
)


@settings(max_examples=200)
@given(st.integers(1, 3), st.lists(ACTIONS, max_size=80))
@example(1, [("disconnect", 0, 0), ("reconnect", 0, 0), ("deliver", 0, 0), ("disconnect", 1, 0)])
@example(2, [("deliver", 0, 0), ("disconnect", 0, 2), ("reconnect", 0, 0), ("deliver", 0, 1), ("deliver", 0, 0)])
def test_every_step_arrives_once_and_in_order(stages: int, actions: list[tuple[str, int, int]]) -> None:
    ring = Ring(stages)
    for action, link, choice in actions:
        place = link % (stages + 1)
        ring.pump()
        if action == "deliver":
            ring.deliver(place, choice)
        elif action == "disconnect":
            ring.links[place].disconnect(survivors=choice)
        else:
            ring.reconnect(place)
        assert all(len(sender) <= MAX_KEPT_FRAMES for sender in ring.senders)
    ring.heal()
    assert ring.accepted == [list(range(STEPS))] * (stages + 1)
    assert all(receiver.idle_position(0) == STEPS + CHUNKS for receiver in ring.receivers)
    assert len(ring.senders[0]) == 0


# --- a route that may be cut elsewhere ---

KV = 6


def behind_the_source() -> Incoming:
    """Cut at 8 now; 6 and 10 are possible. Row 0 has run five tokens from layer 8 on, row 1 two from layer 10 on."""
    receiver = Incoming(
        epoch=EPOCH,
        rows=3,
        context=CONTEXT,
        hidden_size=HIDDEN,
        start_layer=8,
        codec=CodecId.FP16,
        split_points=(6, 10),
        kv_elements=KV,
    )
    receiver.accept(frame(0, (0, 3, 0), tokens=5, opens=True), now=1.0)
    receiver.accept(replace(frame(1, (1, 1, 0), tokens=2, opens=True), start_layer=10), now=1.0)
    return receiver


def handing(kind: FrameKind, step: int, layers: tuple[int, int], *rows: tuple[int, int, int], tokens: int = 1) -> Frame:
    refs = tuple(RowRef(*row) for row in rows)
    elements = (layers[1] - layers[0]) * KV
    return Frame(
        kind,
        1,
        EPOCH,
        step,
        refs,
        start_layer=layers[0],
        codec=CodecId.FP32,
        shape=(len(refs), tokens, elements),
        answered=step - 1,
    )


GIVE, TAKE = FrameKind.GIVE, FrameKind.TAKE


def give(receiver: Incoming, step: int, layers: tuple[int, int], row: tuple[int, int, int], tokens: int = 1) -> None:
    """A slice that comes and is written."""
    receiver.accept(handing(GIVE, step, layers, row, tokens=tokens), now=1.0)
    receiver.given((RowRef(*row),), LayerRange(*layers), tokens)


def test_a_row_is_cut_earlier_once_its_keys_and_values_are_here() -> None:
    receiver = behind_the_source()
    step = 2
    for layers, first, tokens in (((6, 7), 0, 3), ((6, 7), 2, 3), ((7, 8), 0, 4)):
        give(receiver, step, layers, (0, 3, first), tokens)
        step += 1
        assert refusal(receiver, replace(frame(step, (0, 3, 5)), start_layer=6)) is RefusalReason.LAYERS
    receiver.accept(handing(GIVE, step, (7, 8), (0, 3, 4)), now=1.0)
    assert refusal(receiver, replace(frame(step + 1, (0, 3, 5)), start_layer=6)) is RefusalReason.LAYERS, "not written"
    assert receiver.idle_position(0, 6) is None
    receiver.given((RowRef(0, 3, 4),), LayerRange(7, 8), 1)
    receiver.accept(replace(frame(step + 1, (0, 3, 5)), start_layer=6), now=1.0)
    # Later layers are run from then on too, so that it may be cut where it was and be taken back.
    receiver.accept(handing(TAKE, step + 2, (6, 8), (0, 3, 0), tokens=6), now=1.0)
    receiver.accept(frame(step + 3, (0, 3, 6)), now=1.0)
    assert refusal(receiver, replace(frame(step + 4, (0, 3, 7)), start_layer=6)) is RefusalReason.LAYERS


def test_what_was_of_a_session_before_is_nobodys() -> None:
    receiver = behind_the_source()
    receiver.accept(handing(GIVE, 2, (6, 8), (0, 3, 0), tokens=5), now=1.0)
    receiver.accept(frame(3, (0, 4, 0), tokens=3, opens=True), now=1.0)
    receiver.given((RowRef(0, 3, 0),), LayerRange(6, 8), 5)
    assert refusal(receiver, replace(frame(4, (0, 4, 3)), start_layer=6)) is RefusalReason.LAYERS
    assert refusal(receiver, handing(GIVE, 4, (6, 8), (0, 3, 0), tokens=1)) is RefusalReason.GENERATION
    assert refusal(receiver, handing(TAKE, 4, (6, 8), (0, 4, 0), tokens=1)) is RefusalReason.LAYERS


@pytest.mark.parametrize(
    ("handed", "reason"),
    [
        (handing(GIVE, 2, (6, 8), (0, 3, 1)), RefusalReason.LAYERS),
        (handing(GIVE, 2, (5, 8), (0, 3, 0)), RefusalReason.LAYERS),
        (handing(GIVE, 2, (8, 11), (0, 3, 0)), RefusalReason.LAYERS),
        (replace(handing(GIVE, 2, (6, 8), (0, 3, 0)), shape=(1, 1, 7)), RefusalReason.LAYERS),
        (handing(GIVE, 2, (6, 8), (0, 3, 0), tokens=6), RefusalReason.POSITION),
        (handing(GIVE, 2, (6, 8), (0, 2, 0)), RefusalReason.GENERATION),
        (handing(GIVE, 2, (6, 8), (2, 0, 0)), RefusalReason.GENERATION),
        (handing(GIVE, 2, (6, 8), (3, 0, 0)), RefusalReason.ROW),
        (handing(TAKE, 2, (8, 10), (1, 1, 0)), RefusalReason.LAYERS),
        (handing(TAKE, 2, (6, 8), (0, 3, 0)), RefusalReason.LAYERS),
        (handing(TAKE, 2, (8, 10), (0, 3, 4), tokens=2), RefusalReason.POSITION),
        (handing(FrameKind.HANDED, 2, (8, 10), (0, 3, 0)), RefusalReason.SHAPE),
        (handing(GIVE, 3, (6, 8), (0, 3, 0)), RefusalReason.GAP),
        (replace(frame(2, (0, 3, 5)), start_layer=7), RefusalReason.LAYERS),
        (replace(frame(2, (1, 1, 2)), start_layer=8), RefusalReason.LAYERS),
    ],
)
def test_what_cannot_change_hands_is_refused(handed: Frame, reason: RefusalReason) -> None:
    assert refusal(behind_the_source(), handed) is reason


def test_no_layer_changes_hands_where_the_route_stays_as_it_is() -> None:
    receiver = incoming()
    receiver.accept(frame(0, (0, 3, 0), tokens=5, opens=True), now=1.0)
    for kind in (GIVE, TAKE, FrameKind.HANDED):
        assert refusal(receiver, handing(kind, 1, (8, 9), (0, 3, 0))) is RefusalReason.SHAPE


def test_a_later_stage_passes_on_what_is_said_of_rows_that_there_are() -> None:
    receiver = Incoming(
        epoch=EPOCH, rows=2, context=9, hidden_size=HIDDEN, start_layer=8, codec=CodecId.FP16, passes_on=True
    )
    receiver.accept(handing(FrameKind.HANDED, 0, (3, 5), (1, 7, 3), tokens=4), now=1.0)
    assert (receiver.rows.generation(1), receiver.rows.idle_position(1)) == (-1, 0)
    assert refusal(receiver, handing(FrameKind.HANDED, 1, (3, 5), (2, 0, 3))) is RefusalReason.ROW
    assert refusal(receiver, handing(GIVE, 1, (8, 9), (0, 0, 0))) is RefusalReason.SHAPE


def test_a_dummy_is_written_where_it_harms_nothing() -> None:
    receiver = behind_the_source()
    assert [receiver.idle_position(0, start) for start in (6, 8, 10)] == [None, 5, 5]
    assert [receiver.idle_position(1, start) for start in (6, 8, 10)] == [None, None, 2]
    assert [receiver.idle_position(2, start) for start in (6, 8, 10)] == [0, 0, 0]
