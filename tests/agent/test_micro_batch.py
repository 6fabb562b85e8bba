"""Places on a route, slots, and which slots and positions a frame's run covers."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.effects import Outcome
from agent.errors import AgentError
from agent.micro_batch import MicroBatch
from agent.place import MAX_CHUNK_BYTES, NOTHING_LOADED, ModelShape, SlotRanges, place_of
from agent.wire.addresses import StageAddress
from agent.wire.codec import MAX_EPOCH, MAX_MICRO_BATCH, CodecId, Frame, FrameKind, RowRef, decode_answers
from agent.wire.data_plane import DATA_LIMITS
from agent.wire.messages import Opening, OpenMicroBatch, Sampling
from planner.channel import erasing
from planner.types import LayerRange

CONTEXT = 32
HIDDEN = 8


def route(*stops: int) -> tuple[StageAddress, ...]:
    starts = (0, *stops)
    return tuple(
        StageAddress(name, f"tcp://{name}:1", "k", start, stop)
        for name, start, stop in zip("abcdef", starts, stops, strict=False)
    )


def shape(start: int = 0, stop: int = 6) -> ModelShape:
    return ModelShape(6, HIDDEN, 8, CONTEXT, (LayerRange(start, stop),))


def opening(stages: tuple[StageAddress, ...], rows: int = 4, chunk: int = 4) -> OpenMicroBatch:
    return OpenMicroBatch(7, 3, rows, chunk, "fp16", stages)


def micro_batch(device: str, first_slot: int = 2) -> MicroBatch:
    opened = opening(route(2, 4, 6))
    return MicroBatch(opened, place_of(device, opened, shape()), shape(), first_slot)


# --- places ---


def test_neighbours_form_a_ring() -> None:
    opened = opening(route(2, 4, 6))
    places = [place_of(name, opened, shape()) for name in "abc"]
    assert [(p.previous.device, p.next.device) for p in places] == [("c", "b"), ("a", "c"), ("b", "a")]
    assert [(p.is_source, p.is_last) for p in places] == [(True, False), (False, False), (False, True)]
    assert [p.layers for p in places] == [LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6)]
    alone = place_of("a", opening(route(6)), shape())
    assert (alone.is_source, alone.is_last, alone.next.device, alone.previous.device) == (True, True, "a", "a")


@pytest.mark.parametrize(
    ("opened", "loaded", "words"),
    [
        (opening(route(2, 4, 6)), NOTHING_LOADED, "nothing is loaded"),
        (opening(route(6)[:0]), shape(), "names a 0 times"),
        (opening(route(6) * 2), shape(), "names a 2 times"),
        (opening(route(2, 4)), shape(), "ends at layer 4, the model has 6"),
        (opening(route(2, 8)), shape(), "ends at layer 8"),
        (opening(route(2, 4, 6)[::2]), shape(), r"c runs \[4, 6\), expected to start at 2"),
        (opening(route(2, 2, 6)), shape(), r"b runs \[2, 2\)"),
        (opening(route(2, 6)), shape(2, 6), r"a: layers \[0, 2\) are not resident"),
        (opening(route(6), rows=0), shape(), "0 rows, 1 to 16"),
        (opening(route(6), rows=17), shape(), "17 rows, 1 to 16"),
        (opening(route(6), chunk=2), shape(), "chunk of 2, 3 to 4096"),
        (opening(route(6), chunk=4097), shape(), "chunk of 4097"),
    ],
)
def test_a_route_that_cannot_run_here_says_why(opened: OpenMicroBatch, loaded: ModelShape, words: str) -> None:
    with pytest.raises(AgentError, match=words):
        place_of("a", opened, loaded)


@pytest.mark.parametrize(
    ("number", "epoch"), [(-1, 1), (MAX_MICRO_BATCH + 1, 1), (1, 0), (1, -5), (1, MAX_EPOCH + 1), (2**64 - 1, 1)]
)
def test_numbers_that_no_frame_could_carry_are_refused(number: int, epoch: int) -> None:
    with pytest.raises(AgentError, match=f"micro-batch {number} in epoch {epoch}"):
        place_of("a", OpenMicroBatch(number, epoch, 1, 4, "fp16", route(6)), shape())


def test_a_chunk_that_no_frame_could_carry_is_refused() -> None:
    assert DATA_LIMITS.part_bytes == MAX_CHUNK_BYTES
    wide = ModelShape(6, 8192, 8, CONTEXT, (LayerRange(0, 6),))
    most = MAX_CHUNK_BYTES // (4 * 8192)
    place_of("a", OpenMicroBatch(1, 1, 1, most, "fp32", route(6)), wide)
    with pytest.raises(AgentError, match="a prefill chunk of 2049 tokens in fp32 is 65 MiB, 64 fit a frame"):
        place_of("a", OpenMicroBatch(1, 1, 1, most + 1, "fp32", route(6)), wide)


def test_a_stages_jobs_carry_the_channel_of_the_link_into_it() -> None:
    lossy = tuple(
        StageAddress(stage.device, stage.endpoint, stage.key, stage.start, stage.stop, erasing(0.1 * index, index))
        for index, stage in enumerate(route(2, 4, 6))
    )
    opened = opening(lossy)
    one = MicroBatch(opened, place_of("b", opened, shape()), shape(), 0)
    job = one.job_for_frame(prefill(0, 1, 0, 3, 0, opens=True), 0.0)
    assert job.channel == erasing(0.1, 1)


# --- slots ---


@given(
    slots=st.integers(1, 12),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 5)), max_size=30),
)
def test_slots_are_never_shared_and_never_lost(slots: int, steps: list[tuple[bool, int, int]]) -> None:
    ranges = SlotRanges(slots)
    taken: dict[int, range] = {}
    for reserves, number, rows in steps:
        if not reserves:
            ranges.release(number)
            taken.pop(number, None)
        elif number not in taken:
            used = {slot for held in taken.values() for slot in held}
            fits = [s for s in range(slots - rows + 1) if not used & set(range(s, s + rows))]
            if fits:
                assert ranges.reserve(number, rows) == fits[0], "first fit"
                taken[number] = range(fits[0], fits[0] + rows)
            else:
                with pytest.raises(AgentError, match=f"no {rows} contiguous slots"):
                    ranges.reserve(number, rows)


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
