"""What a sender keeps and what an answer releases."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent.errors import FrameRefused, RefusalReason
from agent.wire.codec import CodecId, Frame, FrameKind, RowRef
from agent.wire.hop import Verdict
from agent.wire.kept_frames import Answers, Outgoing
from tests.fakes.frames import EPOCH, frame


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


def asked_for(kind: FrameKind) -> Frame:
    return Frame(kind, 1, EPOCH, 0, (RowRef(0, 3, 5),), start_layer=4, codec=CodecId.FP32, shape=(1, 2, 48))


@pytest.mark.parametrize("kind", [FrameKind.GIVE, FrameKind.TAKE])
@pytest.mark.parametrize(
    "change",
    [
        {"kind": FrameKind.ANSWER},
        {"start_layer": 5},
        {"shape": (1, 3, 48)},
        {"shape": (1, 2, 24)},
        {"codec": CodecId.FP16},
        {"rows": (RowRef(0, 3, 4),)},
        {"rows": ()},
    ],
)
def test_keys_and_values_are_those_that_were_asked_for(kind: FrameKind, change: dict[str, object]) -> None:
    asked = Outgoing()
    answers = Answers(EPOCH, asked)
    asked.keep(asked_for(kind), now=0.0)
    right = replace(asked_for(kind), kind=FrameKind.HANDED)
    with pytest.raises(FrameRefused) as caught:
        answers.accept(replace(right, **change), now=1.0)
    assert caught.value.reason is RefusalReason.SHAPE
    assert (answers.last, len(asked)) == (-1, 1)
    if kind is FrameKind.GIVE:
        right = replace(right, codec=CodecId.NONE, shape=(0, 0, 0))
    assert answers.accept(right, now=1.0) is Verdict.ACCEPT
    assert len(asked) == 0


def test_only_what_was_asked_for_is_handed() -> None:
    asked = Outgoing()
    asked.keep(frame(0, (0, 3, 5)), now=0.0)
    with pytest.raises(FrameRefused, match="HANDED to a DECODE"):
        Answers(EPOCH, asked).accept(replace(asked_for(FrameKind.HANDED), step=0), now=1.0)
