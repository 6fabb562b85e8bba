"""Which slots and positions a frame's run covers, and what goes on behind it."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from agent.effects import Outcome
from agent.errors import FrameRefused
from agent.micro_batch import MicroBatch
from agent.place import ModelShape, place_of
from agent.wire.addresses import StageAddress
from agent.wire.codec import CodecId, Frame, FrameKind, RowRef, decode_answers
from agent.wire.hop import Verdict
from agent.wire.messages import Opening, Sampling
from planner.channel import erasing
from planner.types import LayerRange
from tests.fakes.routes import opening, route

CONTEXT = 32
HIDDEN = 8


def shape(start: int = 0, stop: int = 6) -> ModelShape:
    return ModelShape(6, HIDDEN, 8, CONTEXT, (LayerRange(start, stop),))


def micro_batch(device: str, first_slot: int = 2) -> MicroBatch:
    opened = opening(route(2, 4, 6))
    return MicroBatch(opened, place_of(device, opened, shape()), shape(), first_slot)


def test_a_stages_jobs_carry_the_channel_of_the_link_into_it() -> None:
    lossy = tuple(
        StageAddress(stage.device, stage.endpoint, stage.key, stage.start, stage.stop, erasing(0.1 * index, index))
        for index, stage in enumerate(route(2, 4, 6))
    )
    opened = opening(lossy)
    one = MicroBatch(opened, place_of("b", opened, shape()), shape(), 0)
    job = one.job_for_frame(prefill(0, 1, 0, 3, 0, opens=True), 0.0)
    assert job.channel == erasing(0.1, 1)


# --- runs ---


def prefill(row: int, generation: int, position: int, tokens: int, step: int, *, opens: bool = False) -> Frame:
    return Frame(
        FrameKind.PREFILL,
        7,
        3,
        step,
        rows=(RowRef(row, generation, position),),
        start_layer=2,
        codec=CodecId.FP16,
        shape=(1, tokens, HIDDEN),
        openings=(Opening(row, generation, Sampling(seed=row)),) if opens else (),
        answered=step - 1,
        held_us=10,
    )


def test_a_sender_who_lies_of_answers_fills_no_queue() -> None:
    """While a device is busy elsewhere: no more frames come in than may be in flight."""
    one = micro_batch("b")
    one.accept(prefill(0, 1, 0, 3, 0, opens=True), 0.0)
    following = prefill(0, 1, 3, 3, 1)
    with pytest.raises(FrameRefused, match="step 0 cannot be answered, it is still here"):
        one.accept(msgspec.structs.replace(following, answered=0), 0.0)
    assert one.accept(msgspec.structs.replace(following, answered=-1), 0.0) is Verdict.ACCEPT


def decode(rows: tuple[RowRef, ...], step: int) -> Frame:
    return msgspec.structs.replace(
        prefill(0, 0, 0, 1, step), kind=FrameKind.DECODE, rows=rows, sample=True, shape=(len(rows), 1, HIDDEN)
    )


def test_a_run_covers_the_rows_and_an_idle_one_between_computes_at_its_own_position() -> None:
    one = micro_batch("b", first_slot=2)
    assert one.incoming is not None
    for step, (row, tokens) in enumerate([(1, 4), (2, 3), (3, 2)]):
        frame = prefill(row, 5, 0, tokens, step, opens=True)
        one.incoming.accept(frame, 0.0)
        job = one.job_for_frame(frame, 0.0)
        assert (job.first_slot, job.positions, job.active) == (2 + row, (0,), (0,))
    frame = decode((RowRef(1, 5, 4), RowRef(3, 5, 2)), 3)
    one.incoming.accept(frame, 0.0)
    job = one.job_for_frame(frame, 9.0)
    assert (job.first_slot, job.positions, job.active) == (3, (4, 3, 2), (0, 2))
    assert (job.layers, job.outgoing, job.choosers) == (LayerRange(2, 4), CodecId.FP16, ())
    assert job.arrived_s == 9.0


def test_the_last_stage_samples_with_what_each_row_was_opened_with() -> None:
    opened = opening(route(2, 6))
    one = MicroBatch(opened, place_of("b", opened, shape()), shape(), 0)
    first = one.job_for_frame(msgspec.structs.replace(prefill(0, 1, 0, 3, 0, opens=True), sample=True), 0.0)
    second = one.job_for_frame(msgspec.structs.replace(prefill(1, 1, 0, 3, 1, opens=True), sample=True), 0.0)
    first.choosers[0].generated[5] += 1
    both = one.job_for_frame(decode((RowRef(0, 1, 3), RowRef(1, 1, 3)), 2), 0.0)
    assert both.choosers == (first.choosers[0], second.choosers[0])
    assert [chooser.sampling.seed for chooser in both.choosers] == [0, 1]
    reused = one.job_for_frame(msgspec.structs.replace(prefill(0, 2, 0, 3, 3, opens=True), sample=True), 0.0)
    assert reused.choosers[0].generated == {}, "a row's next session starts afresh"
    assert first.choosers[0].generated == {5: 1}, "and a run of the former one still counts its own"
    assert one.job_for_frame(prefill(0, 2, 3, 3, 4), 0.0).choosers == ()


def test_the_frame_behind_a_run_carries_on_what_came() -> None:
    one = micro_batch("b")
    frame = prefill(1, 5, 0, 4, 0, opens=True)
    job = one.job_for_frame(frame, 1.0)
    behind = one.frame_after(job, Outcome(payload=b"p", shape=(1, 4, HIDDEN)), 1.5)
    assert behind == msgspec.structs.replace(
        frame, start_layer=4, payload=b"p", held_us=500_010, sent_ns=1_500_000_000, shape=(1, 4, HIDDEN)
    )


def test_the_last_stage_answers_and_the_source_holds_nothing() -> None:
    last = micro_batch("c")
    job = last.job_for_frame(msgspec.structs.replace(prefill(1, 5, 0, 4, 0, opens=True), start_layer=4), 1.0)
    answer = last.frame_after(job, Outcome(), 1.0)
    assert (answer.kind, answer.rows, answer.shape) == (FrameKind.ANSWER, job.rows, (0, 0, 0))
    assert decode_answers(answer.payload) == ()
    source = micro_batch("a")
    assert source.frame_after(dataclasses.replace(job, layers=LayerRange(0, 2)), Outcome(), 9.0).held_us == 0
