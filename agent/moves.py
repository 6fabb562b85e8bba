"""What a source does about a split point that moves, and tells of it: between its stage and its `Handover`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.effects import Effect, Emit, Outcome
from agent.errors import AgentError, UnknownMicroBatch
from agent.handover import Handover, MoveLate
from agent.micro_batch import MicroBatch
from agent.wire import codec
from agent.wire.codec import CodecId, Frame, FrameKind
from agent.wire.messages import FromSource, SplitKept


def begin(device: str, micro_batch: MicroBatch | None, number: int, split: int, now: float) -> list[Effect]:
    """The coordinator asks for another split. What becomes of it is told in the end."""
    loop = None if micro_batch is None else micro_batch.loop
    handover = None if loop is None else loop.handover
    try:
        if micro_batch is None or loop is None or handover is None:
            raise UnknownMicroBatch(f"micro-batch {number} has no split point that {device} could move")
        if micro_batch.broken is not None:
            raise UnknownMicroBatch(f"micro-batch {number} is broken: {micro_batch.broken}")
        before = handover.split if handover.is_moving else split
        handover.begin(split, loop.running(), now)
    except AgentError as problem:
        return [Emit(SplitKept(number, split, problem.code, f"{device}: {problem}"))]
    superseded = SplitKept(number, before, "superseded", f"{device}: moves to {split} instead")
    return emit([*([superseded] if before != split else []), *loop.news(now)])


def give_up(micro_batch: MicroBatch, problem: AgentError) -> list[Effect]:
    """If a move is under way."""
    handover = None if micro_batch.loop is None else micro_batch.loop.handover
    return emit([handover.give_up(problem)]) if handover is not None and handover.is_moving else []


def on_time(micro_batch: MicroBatch, now: float) -> list[Effect]:
    """A move may be late, or done because a session has ended."""
    loop = micro_batch.loop
    if loop is None or loop.handover is None:
        return []
    try:
        loop.handover.check_late(loop.running(), now)
    except MoveLate as late:
        return give_up(micro_batch, late)
    return emit(loop.news(now))


def handed(micro_batch: MicroBatch, frame: Frame, now: float) -> list[Effect]:
    """An accepted answer: a slice has been given, or has come, or a device could not do its part."""
    handover = _handover(micro_batch)
    assert handover.under_way is not None, "the question was kept"
    if frame.codec is CodecId.NONE and len(frame.payload):
        refused = codec.decode_refusal(frame.payload)
        return _kept(handover.refused(f"{micro_batch.place.next.device}: {refused.detail}"))
    if handover.under_way.kind is FrameKind.TAKE:
        micro_batch.queue.append(micro_batch.job_to_write(handover.under_way, frame, now))
        return []
    return _arrived(micro_batch, now)


def written(device: str, micro_batch: MicroBatch, outcome: Outcome, now: float) -> list[Effect]:
    """What came has been written here, or could not be."""
    if outcome.refused:
        return _kept(_handover(micro_batch).refused(f"{device}: {outcome.refused}"))
    return _arrived(micro_batch, now)


def timed(micro_batch: MicroBatch, frame: Frame, now: float) -> None:
    """The question of this answer is still known."""
    assert micro_batch.loop is not None
    _handover(micro_batch).timed(now - micro_batch.loop.sent_s(frame.step) - frame.held_us / 1e6)


def emit(events: Sequence[FromSource]) -> list[Effect]:
    """To be told to the coordinator, in order."""
    return [Emit(event) for event in events]


def _arrived(micro_batch: MicroBatch, now: float) -> list[Effect]:
    assert micro_batch.loop is not None
    _handover(micro_batch).arrived(micro_batch.loop.running(), now)
    return emit(micro_batch.loop.news(now))


def _handover(micro_batch: MicroBatch) -> Handover:
    assert micro_batch.loop is not None
    handover = micro_batch.loop.handover
    assert handover is not None, "nothing changes hands here"
    return handover


def _kept(kept: SplitKept | None) -> list[Effect]:
    return [] if kept is None else [Emit(kept)]
