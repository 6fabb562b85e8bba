"""Which job is next: due times, the length of chunks, rounds of a pipeline. Whole rings are in test_shared_rings."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from agent import step
from agent.device.telemetry import TelemetryRecorder
from agent.effects import Job, Send
from agent.micro_batch import MicroBatch
from agent.place import ModelShape, place_of
from agent.schedule import CHUNK_SHARE, LEAST_CHUNK, PREFILL_SHARE, Schedule
from agent.stage import Stage
from agent.wire.addresses import StageAddress
from agent.wire.codec import Answered, Frame, FrameKind, RowRef, encode_answers
from agent.wire.messages import OpenMicroBatch
from planner.types import LayerRange, Pipeline
from tests.fakes.fake_executor import HIDDEN, FakeExecutor
from tests.fakes.ring import session

CONTEXT = 4000
CHUNK = 128


@dataclass
class Source:
    """A source whose runs take a given time, alone or before a stage that a test answers for."""

    stages: tuple[StageAddress, ...]
    micro_batches: int = 1
    rows: int = 2
    pipeline: Pipeline = "no-bubbles"
    row_s: float = 0.01
    token_s: float = 0.01
    now: float = 0.0
    ran: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        layers = LayerRange(0, self.stages[0].stop)
        slots = self.rows * self.micro_batches
        shape = ModelShape(2, HIDDEN, slots, CONTEXT, (layers,))
        self.stage = Stage("a", shape, TelemetryRecorder(), 0.0)
        self.executor = FakeExecutor(2, (layers,), slots=slots, context=CONTEXT)
        for number in range(self.micro_batches):
            self.stage.open_micro_batch(
                OpenMicroBatch(number, 1, self.rows, CHUNK, "fp16", self.stages, pipeline=self.pipeline)
            )

    def open(
        self, name: str, prompt: int, max_tokens: int = 1000, *, micro_batch: int = 0, patience: float = 0
    ) -> None:
        opened = session(name, [1] * prompt, max_tokens, micro_batch=micro_batch, patience_s=patience)
        assert self.stage.open_session(opened, self.now) == []

    def run(self) -> Job | None:
        job = self.stage.next_job(self.now)
        if job is None:
            return None
        started_s = self.now
        self.now += self.row_s * len(job.rows) if job.kind is FrameKind.DECODE else self.token_s * job.shape[1]
        times = iter((started_s, self.now))
        effects = self.stage.on_computed(job, step.run(job, self.executor, lambda: next(times)), self.now)
        assert not any(isinstance(effect, Send) for effect in effects) or len(self.stages) > 1
        self.ran.append(job)
        return job

    def answer(self, micro_batch: int, step: int) -> None:
        """The second stage's answer to a step of one row."""
        job = next(job for job in self.ran if (job.micro_batch, job.step) == (micro_batch, step))
        answers = encode_answers((Answered(1),)) if job.sample else encode_answers(())
        frame = Frame(FrameKind.ANSWER, micro_batch, 1, step, rows=job.rows, sample=job.sample, payload=answers)
        self.stage.on_frame(b"b>a", "b", frame, self.now)


ALONE = (StageAddress("a", "", "", 0, 2),)
TWO = (StageAddress("a", "", "", 0, 1), StageAddress("b", "tcp://b:1", "k", 1, 2))


def test_chunks_are_whole_while_nobody_decodes() -> None:
    source = Source(ALONE)
    source.open("s", 300)
    assert [source.run().shape[1] for _ in range(3)] == [128, 128, 44]  # type: ignore[union-attr]


@pytest.mark.parametrize("rows", [3, 8, 15])
def test_a_chunk_takes_about_as_long_as_the_round_of_those_who_decode(rows: int) -> None:
    """Prefill and decoding share the device's time, and nobody's token waits longer than a round more."""
    source = Source(ALONE, rows=rows + 1, row_s=0.03)
    for number in range(rows):
        source.open(f"s{number}", 2)
    while not source.ran or len(source.ran[-1].rows) < rows:
        source.run()
    source.open("long", 1500)
    began_s = source.now
    first = len(source.ran)
    while not source.ran[-1].sample or source.ran[-1].kind is FrameKind.DECODE:
        source.run()
    took_s = source.now - began_s
    jobs = source.ran[first:]
    chunks = [job.shape[1] for job in jobs if job.kind is FrameKind.PREFILL]
    assert sum(chunks) == 1500
    assert max(chunks) * source.token_s <= max(LEAST_CHUNK * source.token_s, rows * source.row_s)
    assert took_s == pytest.approx((1 + 1 / CHUNK_SHARE) * 1500 * source.token_s, rel=0.2)
    kinds = [job.kind for job in jobs]
    assert not any(kinds[i] is kinds[i + 1] is FrameKind.PREFILL for i in range(len(kinds) - 1)), "one chunk per round"


def test_a_round_too_short_for_the_least_chunk_gives_prefill_its_share_all_the_same() -> None:
    source = Source(ALONE, row_s=0.01, token_s=0.01)
    source.open("s", 2, 1000)
    for _ in range(4):
        source.run()
    source.open("long", 400)
    first = len(source.ran)
    while sum(job.shape[1] for job in source.ran[first:] if job.kind is FrameKind.PREFILL) < 400:
        source.run()
    jobs = source.ran[first:]
    chunks = [job.shape[1] for job in jobs if job.kind is FrameKind.PREFILL]
    assert set(chunks) == {LEAST_CHUNK}
    steps = sum(job.kind is FrameKind.DECODE for job in jobs)
    assert PREFILL_SHARE * steps * source.row_s == pytest.approx(400 * source.token_s, rel=0.1)


def test_of_two_prompts_the_one_that_is_due_first_gets_the_chunks() -> None:
    source = Source(ALONE, micro_batches=3)
    source.open("a", 300, 1, patience=5.0, micro_batch=0)
    source.open("b", 300, 1, patience=1.0, micro_batch=1)
    source.run()
    source.open("c", 300, 1, micro_batch=2)
    while source.run() is not None:
        pass
    assert [job.micro_batch for job in source.ran] == [1, 1, 1, 2, 2, 2, 0, 0, 0], "due after 1, 1.28 + 3 and 5 s"


@pytest.mark.parametrize(("pipeline", "steps"), [("no-bubbles", 4), ("bubbles", 4), ("sequential", 1)])
def test_how_many_steps_of_a_route_are_under_way(pipeline: Pipeline, steps: int) -> None:
    source = Source(TWO, micro_batches=4, rows=1, pipeline=pipeline)
    for number in range(4):
        source.open(f"s{number}", 3, micro_batch=number)
    taken = 0
    while source.run() is not None:
        taken += 1
    assert taken == steps


# --- frames that arrived ---

LAST = (StageAddress("z", "tcp://z:1", "k", 0, 1), StageAddress("a", "", "", 1, 2))
"""Here `a` is the second stage."""


def behind(micro_batches: int) -> dict[int, MicroBatch]:
    shape = ModelShape(2, HIDDEN, micro_batches, CONTEXT, (LayerRange(1, 2),))
    opened = [OpenMicroBatch(number, 1, 1, CHUNK, "fp16", LAST) for number in range(micro_batches)]
    return {each.micro_batch: MicroBatch(each, place_of("a", each, shape), shape, each.micro_batch) for each in opened}


def job(number: int, kind: FrameKind, arrived_s: float) -> Job:
    return Job(kind, number, 1, 0, (RowRef(0, 1, 0),), False, LayerRange(1, 2), 0, (0,), (0,), arrived_s=arrived_s)


def order(schedule: Schedule, micro_batches: dict[int, MicroBatch]) -> list[tuple[int, FrameKind]]:
    taken = []
    while (choice := schedule.choose(micro_batches.values(), 9.0)) is not None:
        one = schedule.take(micro_batches, choice, 9.0)
        taken.append((one.micro_batch, one.kind))
    return taken


P, D = FrameKind.PREFILL, FrameKind.DECODE


def test_a_chunk_that_arrived_lets_a_round_of_others_pass_and_no_more() -> None:
    schedule, micro_batches = Schedule(), behind(4)
    for number in range(4):
        schedule.has_run(job(number, D, 0.0), 0.1, 1.0)  # a round is 0.4 s
    for number, kind, arrived_s in ((0, P, 5.0), (1, D, 5.1), (2, D, 5.3), (3, D, 5.5)):
        micro_batches[number].queue.append(job(number, kind, arrived_s))
    assert order(schedule, micro_batches) == [(1, D), (2, D), (0, P), (3, D)]


def test_who_waits_behind_a_chunk_of_his_own_micro_batch_lends_it_his_due_time() -> None:
    schedule, micro_batches = Schedule(), behind(2)
    for number in range(2):
        schedule.has_run(job(number, D, 0.0), 0.5, 1.0)
    for number, kind, arrived_s in ((0, P, 5.0), (0, D, 5.1), (1, D, 5.2)):
        micro_batches[number].queue.append(job(number, kind, arrived_s))
    assert order(schedule, micro_batches) == [(0, P), (0, D), (1, D)]


def test_nothing_of_a_broken_micro_batch_is_chosen() -> None:
    schedule, micro_batches = Schedule(), behind(2)
    for number in range(2):
        micro_batches[number].queue.append(job(number, D, 5.0))
    micro_batches[0].broken = "gap"
    assert order(schedule, micro_batches) == [(1, D)]


def test_a_closed_micro_batch_leaves_nothing_behind() -> None:
    source = Source(TWO, micro_batches=2, rows=1, pipeline="bubbles")
    for number in range(2):
        source.open(f"s{number}", 3, micro_batch=number)
        source.stage.close_micro_batch(number)
    assert not source.stage.has_job(source.now)
    assert vars(source.stage._schedule) == vars(Schedule())


# --- rounds ---


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_with_bubbles_a_micro_batch_waits_for_the_tokens_of_all(answered: int) -> None:
    source = Source(TWO, micro_batches=3, rows=1, pipeline="bubbles")
    for number in range(3):
        source.open(f"s{number}", 3, micro_batch=number)
    for _ in range(3):
        source.run()
    for number in range(3):
        source.answer(number, 0)
    assert [source.run().micro_batch for _ in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
    for number in range(answered):
        source.answer(number, 1)
        assert source.run() is None, "its token is back, the others' are not"
    for number in range(answered, 3):
        source.answer(number, 1)
    assert [source.run().micro_batch for _ in range(3)] == [0, 1, 2]  # type: ignore[union-attr]


def test_with_bubbles_a_micro_batch_that_breaks_with_a_step_under_way_holds_up_nobody() -> None:
    """The others go on in rounds of all of them, long before it is closed."""
    source = Source(TWO, micro_batches=4, rows=1, pipeline="bubbles")
    for number in range(4):
        source.open(f"s{number}", 3, micro_batch=number)
    for step_ in range(2):
        jobs = [source.run() for _ in range(4)]
        for number in range(4 if step_ == 0 else 0):
            source.answer(number, 0)
    assert jobs[0] is not None
    source.stage.on_compute_failed(jobs[0], ValueError("no memory"))
    for round_ in range(1, 4):
        for number in (1, 2, 3):
            source.answer(number, round_)
        assert [source.run().micro_batch for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
        assert source.run() is None


def test_sequentially_a_micro_batch_that_breaks_with_a_step_under_way_holds_up_nobody() -> None:
    source = Source(TWO, micro_batches=2, rows=1, pipeline="sequential")
    for number in range(2):
        source.open(f"s{number}", 3, micro_batch=number)
    broken = source.run()
    assert broken is not None
    assert source.run() is None
    source.stage.on_compute_failed(broken, ValueError("no memory"))
    for round_ in range(3):
        job = source.run()
        assert job is not None
        assert job.micro_batch != broken.micro_batch
        source.answer(job.micro_batch, round_)
