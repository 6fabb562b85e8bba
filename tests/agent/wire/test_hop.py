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
from agent.wire.messages import Opening, Sampling
from tests.fakes.fake_link import FakeLink

EPOCH = 7
HIDDEN = 4
CONTEXT = 32


def incoming(rows: int = 4) -> Incoming:
    return Incoming(epoch=EPOCH, rows=rows, context=CONTEXT, hidden_size=HIDDEN, start_layer=8, codec=CodecId.FP16)


def frame(step: int, *rows: tuple[int, int, int], tokens: int = 1, opens: bool = False, answered: int = -2) -> Frame:
    refs = tuple(RowRef(*row) for row in rows)
    return Frame(
        FrameKind.DECODE if tokens == 1 else FrameKind.PREFILL,
        micro_batch=1,
        epoch=EPOCH,
        step=step,
        rows=refs,
        start_layer=8,
        codec=CodecId.FP16,
        shape=(len(refs), tokens, HIDDEN),
        answered=step - 1 if answered == -2 else answered,
        openings=tuple(Opening(ref.row, ref.generation, Sampling()) for ref in refs) if opens else (),
    )


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


def test_what_a_sender_keeps() -> None:
    kept = Outgoing()
    assert kept.oldest_age_s(5.0) == 0.0
    frames = [frame(step, (0, 0, step)) for step in range(3)]
    for at, sent in enumerate(frames):
        kept.keep(sent, now=float(at))
    assert kept.unanswered() == frames
    assert kept.oldest_age_s(5.0) == 5.0
    kept.release(0)
    assert kept.unanswered() == frames[1:]
    assert kept.oldest_age_s(5.0) == 4.0
    assert kept.find(0) is None
    assert kept.find(2) is frames[2]
    kept.release(0)  # an older frame says less than a newer one did
    kept.release(2)
    assert len(kept) == 0
    assert kept.last == 2
    for wrong in (frames[2], frame(4, (0, 0, 4))):
        with pytest.raises(ValueError, match="step"):
            kept.keep(wrong, now=6.0)


def answer(step: int, *rows: tuple[int, int, int]) -> Frame:
    return Frame(FrameKind.ANSWER, 1, EPOCH, step, tuple(RowRef(*row) for row in rows))


def test_answers_release_what_was_asked() -> None:
    asked = Outgoing()
    answers = Answers(EPOCH, asked)
    for step in range(2):
        asked.keep(frame(step, (0, 3, step)), now=0.0)
    assert answers.accept(answer(0, (0, 3, 0)), now=1.0) is Verdict.ACCEPT
    assert (answers.last, answers.heard_at) == (0, 1.0)
    assert [kept.step for kept in asked.unanswered()] == [1]
    assert answers.accept(answer(0, (0, 3, 0)), now=2.0) is Verdict.DUPLICATE
    for wrong, reason in (
        (replace(answer(1), epoch=EPOCH + 1), RefusalReason.EPOCH),
        (answer(2), RefusalReason.GAP),
        (answer(1, (0, 2, 1)), RefusalReason.ROW),
        (answer(1, (1, 3, 1)), RefusalReason.ROW),
        (replace(answer(1), kind=FrameKind.DECODE), RefusalReason.SHAPE),
    ):
        with pytest.raises(FrameRefused) as caught:
            answers.accept(wrong, now=3.0)
        assert caught.value.reason is reason
        assert (answers.last, len(asked)) == (0, 1)
    answers.accept(answer(1, (0, 3, 1)), now=3.0)
    with pytest.raises(FrameRefused, match="was not sent"):
        answers.accept(answer(2), now=3.0)


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
