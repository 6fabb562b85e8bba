"""The stage's calls one by one: what comes in from outside, what the coordinator asks, what time brings.

Whole conversations are in tests/golden, random ones in tests/test_ring_faults.py.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import step
from agent.compute.kernels import crc32c
from agent.device.telemetry import TelemetryRecorder, count, mean
from agent.effects import Connect, Disconnect, Effect, Emit, Notify, Reply, Send
from agent.errors import FrameRefused, RefusalReason
from agent.place import NOTHING_LOADED, ModelShape
from agent.stage import Stage
from agent.wire import codec
from agent.wire.addresses import StageAddress
from agent.wire.codec import Buffer, CodecId, Frame, FrameKind, RowRef
from agent.wire.messages import (
    Failed,
    MicroBatchClosed,
    MicroBatchOpened,
    Opening,
    OpenMicroBatch,
    OpenSession,
    Sampling,
    SessionEnded,
    SessionFailed,
    TokenEvent,
)
from agent.wire.round_trip import PING_INTERVAL_S
from planner.types import LayerRange
from tests.fakes.fake_executor import HIDDEN, FakeExecutor
from tests.fakes.ring import Ring, session, three_stages

LAYERS = LayerRange(0, 2)
CONTEXT = 32


def address(name: str, start: int, stop: int) -> StageAddress:
    return StageAddress(name, f"tcp://{name}:1", f"key-{name}", start, stop)


ROUTE = (address("a", 0, 2), address("b", 2, 4), address("c", 4, 6))


def opening(number: int = 1, epoch: int = 1, stages: tuple[StageAddress, ...] = ROUTE, rows: int = 1) -> OpenMicroBatch:
    return OpenMicroBatch(number, epoch, rows, 4, "fp16", stages)


def stage(name: str = "a", layers: LayerRange = LAYERS, slots: int = 4) -> Stage:
    return Stage(name, ModelShape(6, HIDDEN, slots, CONTEXT, (layers,)), TelemetryRecorder(), 0.0)


def of(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def reply_to(effects: list[Effect]) -> tuple[bytes, Frame]:
    (reply,) = effects
    assert isinstance(reply, Reply)
    return reply.origin, reply.frame


def parts(frame: Frame) -> list[Buffer]:
    return codec.encode(frame, crc32c)


# --- bytes from outside ---

SAMPLE = Frame(
    FrameKind.PREFILL,
    1,
    1,
    0,
    rows=(RowRef(0, 1, 0),),
    start_layer=2,
    codec=CodecId.FP16,
    shape=(1, 2, HIDDEN),
    payload=bytes(4 * HIDDEN),
)


@given(garbage=st.lists(st.binary(max_size=300), max_size=5))
def test_garbage_is_refused_and_nothing_else_happens(garbage: list[bytes]) -> None:
    one = stage("b", LayerRange(2, 4))
    one.open_micro_batch(opening())
    origin, frame = reply_to(one.on_parts(b"x", "a", list(garbage), 0.0))
    assert (origin, frame.kind, frame.epoch) == (b"x", FrameKind.REFUSAL, 0)
    assert one.on_replied("c", list(garbage), 0.0) == []


@given(flips=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 300), st.integers(1, 255)), min_size=1, max_size=4))
def test_changed_bytes_of_a_stranger_are_refused_and_the_stage_serves_on(flips: list[tuple[int, int, int]]) -> None:
    ring = three_stages()
    opened = session("s", range(7), 4)
    ring.open_session("a", opened)
    changed = [bytearray(part) for part in parts(SAMPLE)]
    for index, place, bits in flips:
        changed[index][place % len(changed[index])] ^= bits
    ring.hand_over("c", "b", list(changed))
    ring.settle()
    assert ring.tokens("s") == ring.expected(opened)


frames = st.builds(
    Frame,
    kind=st.sampled_from(FrameKind),
    micro_batch=st.integers(0, 2),
    epoch=st.integers(0, 2),
    step=st.integers(0, 3),
    rows=st.lists(st.builds(RowRef, st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), max_size=3).map(tuple),
    sample=st.booleans(),
    start_layer=st.integers(0, 4),
    codec=st.sampled_from(CodecId),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from([0, HIDDEN, 9])),
    answered=st.integers(-1, 3),
    held_us=st.integers(0, 10),
    sent_ns=st.integers(0, 10),
    payload=st.binary(max_size=64),
)


@pytest.mark.parametrize("name", ["a", "b", "c"])
@given(sent=st.lists(st.tuples(frames, st.sampled_from("abc"), st.booleans()), min_size=1, max_size=6))
def test_no_well_sealed_frame_raises_anything(name: str, sent: list[tuple[Frame, str, bool]]) -> None:
    """Whoever is on the list may send what he likes: he gets a refusal, at worst his micro-batch breaks."""
    ring = three_stages()
    ring.open_session("a", session("s", range(5), 2))
    for frame, device, is_reply in sent:
        if is_reply:
            effects = ring.members[name].stage.on_replied(device, parts(frame), 0.0)
        else:
            effects = ring.members[name].stage.on_parts(b"x", device, parts(frame), 0.0)
        assert all(isinstance(effect, (Reply, Emit, Notify, Send)) for effect in effects)


def test_a_reply_is_no_request() -> None:
    for kind in (FrameKind.REFUSAL, FrameKind.PONG):
        payload = codec.encode_refusal(FrameRefused(RefusalReason.GAP, "x")) if kind == 4 else b""
        _, frame = reply_to(stage().on_parts(b"x", "b", parts(Frame(kind, 0, 0, 0, payload=payload)), 0.0))
        assert codec.decode_refusal(frame.payload).reason is RefusalReason.HEADER


def test_an_answer_with_a_broken_payload_is_refused_and_the_session_fails() -> None:
    ring = three_stages()
    ring.open_session("a", session("s", range(3), 2))
    while not ring.links["c", "a"].frames:
        ring.perform(ring.actions()[0])
    ring.edit_frame("c", "a", payload=b"\xc1")
    ring.settle()
    end = ring.end_of("s")
    assert isinstance(end, SessionFailed)
    assert "payload: a: answers" in end.detail


def test_an_answer_for_too_few_rows_is_refused_and_leaves_no_trace() -> None:
    ring = three_stages()
    opened = session("s", range(3), 2)
    ring.open_session("a", opened)
    while not ring.links["c", "a"].frames:
        ring.perform(ring.actions()[0])
    short = msgspec.structs.replace(ring.first_frame("c", "a"), payload=codec.encode_answers(()))
    _, refusal = reply_to(ring.members["a"].stage.on_parts(b"x", "c", parts(short), 0.0))
    assert codec.decode_refusal(refusal.payload).detail == "a: 0 answers to 1 rows"
    ring.settle()
    assert ring.tokens("s") == ring.expected(opened), "the right answer is no duplicate"


def test_a_chunk_longer_than_was_agreed_on_is_refused() -> None:
    one = stage("b", LayerRange(2, 4))
    one.open_micro_batch(opening())
    longer = msgspec.structs.replace(SAMPLE, shape=(1, 5, HIDDEN), payload=bytes(10 * HIDDEN))
    _, refusal = reply_to(one.on_parts(b"x", "a", parts(longer), 0.0))
    assert codec.decode_refusal(refusal.payload).detail == "b: chunk of 5 tokens, at most 4"
    fits = msgspec.structs.replace(SAMPLE, openings=(Opening(0, 1, Sampling()),))
    assert one.on_parts(b"x", "a", parts(fits), 0.0) == [], "it left no trace"


# --- micro-batches ---


def test_a_stage_without_a_model_says_so() -> None:
    empty = Stage("a", NOTHING_LOADED, TelemetryRecorder(), 0.0)
    (notice,) = empty.open_micro_batch(opening())
    assert isinstance(notice, Notify)
    assert isinstance(notice.message, Failed)
    assert (notice.message.request, notice.message.micro_batch) == ("open-micro-batch", 1)
    assert empty.open_session(session("s", [1]), 0.0)[0] == Emit(
        SessionFailed("s", "unknown_micro_batch", "a is not the source of micro-batch 1")
    )


def test_a_connection_is_shared_and_left_with_its_last_micro_batch() -> None:
    one = stage()
    assert of(one.open_micro_batch(opening(1)), Connect) == [Connect("b", "tcp://b:1", "key-b")]
    assert of(one.open_micro_batch(opening(2)), Connect) == []
    assert one.close_micro_batch(1) == [Notify(MicroBatchClosed(1))]
    assert one.close_micro_batch(2) == [Disconnect("b"), Notify(MicroBatchClosed(2))]
    assert one.close_micro_batch(2) == [Notify(MicroBatchClosed(2))]


def test_a_peer_that_moved_is_connected_anew() -> None:
    one = stage()
    one.open_micro_batch(opening(1))
    moved = (ROUTE[0], StageAddress("b", "tcp://b:2", "key-b", 2, 4), ROUTE[2])
    effects = one.open_micro_batch(opening(2, stages=moved))
    assert effects[:2] == [Disconnect("b"), Connect("b", "tcp://b:2", "key-b")]


def test_a_route_of_one_device_connects_to_nobody() -> None:
    one = stage("a", LayerRange(0, 6))
    assert one.open_micro_batch(opening(stages=(address("a", 0, 6),))) == [Notify(MicroBatchOpened(1, 1))]


def test_closing_ends_the_sessions_and_the_slots_come_back() -> None:
    one = stage(slots=1)
    one.open_micro_batch(opening())
    one.open_session(session("s", [1, 2]), 0.0)
    assert one.close_all() == [Emit(SessionEnded("s", "cancelled", 0)), Disconnect("b")]
    assert Notify(MicroBatchOpened(2, 1)) in one.open_micro_batch(opening(2))


def test_a_run_that_ends_after_its_epoch_changes_nothing() -> None:
    one = stage()
    executor = FakeExecutor(6, (LAYERS,), slots=4, context=CONTEXT)
    one.open_micro_batch(opening(epoch=1))
    assert one.open_session(session("s", [1, 2]), 0.0) == []
    job = one.next_job(0.0)
    assert job is not None
    one.open_micro_batch(opening(epoch=2))
    assert one.on_computed(job, step.run(job, executor, lambda: 0.0), 0.0) == []
    assert one.on_compute_failed(job, ValueError("x")) == []
    assert one.open_session(session("t", [1, 2]), 0.0) == [], "the new one is not broken"
    one.close_micro_batch(1)
    assert one.on_computed(job, step.run(job, executor, lambda: 0.0), 0.0) == []
    assert one.on_compute_failed(job, ValueError("x")) == []


def test_a_session_that_failed_on_one_micro_batch_is_resumed_where_it_runs_now() -> None:
    ring = three_stages()
    ring.open_micro_batch(2, 1, "abc")
    ring.open_session("a", session("s", range(3), 3))
    job = ring.members["a"].stage.next_job(ring.now)
    assert job is not None
    ring.perform_effects("a", ring.members["a"].stage.on_compute_failed(job, ValueError("no memory")))
    ring.open_session("a", session("s", range(3), 3, micro_batch=2))
    ring.settle()
    again = [effect.message for effect in ring.members["a"].stage.resume_events("s", 0) if isinstance(effect, Emit)]
    assert [event.token for event in again if isinstance(event, TokenEvent)] == ring.expected(session("s", range(3), 3))
    assert again[-1] == SessionEnded("s", "length", 3)


# --- computing ---


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_run_that_fails_costs_its_session_and_names_the_device(name: str) -> None:
    ring = three_stages()
    ring.open_session("a", session("s", range(3), 2))
    while not ring.members[name].stage.has_job(ring.now):
        ring.perform(ring.actions()[0])
    job = ring.members[name].stage.next_job(ring.now)
    assert job is not None
    ring.perform_effects(name, ring.members[name].stage.on_compute_failed(job, ValueError("no memory")))
    ring.settle()
    end = ring.end_of("s")
    assert isinstance(end, SessionFailed)
    assert end.detail == f"compute: {name}, layers {ring.members[name].layers}: no memory"
    assert ring.counters(name)["frames_refused:compute"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        session("bad", [1, 10**6]),
        session("bad", [1], emitted=[-1]),
        session("bad", [1], sampling=Sampling(top_p=float("nan"))),
        session("bad", [1], sampling=Sampling(logit_bias=tuple((n % 97, 1.0) for n in range(5000)))),
    ],
)
def test_a_session_that_cannot_run_costs_nobody_beside_it_anything(bad: OpenSession) -> None:
    ring = three_stages(rows=2)
    good = session("good", [1, 2, 3], 9)
    ring.open_session("a", good)
    ring.perform(ring.actions()[0])
    ring.open_session("a", bad)
    ring.settle()
    assert isinstance(ring.end_of("bad"), SessionFailed)
    assert ring.tokens("good") == ring.expected(good)


# --- time ---


def test_an_idle_peer_is_pinged_every_second_and_its_answer_is_a_round_trip() -> None:
    ring = three_stages()
    ring.tick(PING_INTERVAL_S)
    assert [frame.kind for frame in ring.frames_under_way("a", "b")] == [FrameKind.PING]
    ring.now += 0.004
    ring.settle()
    measured = ring.members["a"].telemetry.snapshot().histograms["hop_rtt_seconds"]
    assert count(measured) == 1
    assert mean(measured) == pytest.approx(0.004)


def test_a_pong_nobody_asked_for_measures_nothing() -> None:
    ring = three_stages()
    ring.tick(PING_INTERVAL_S)
    ring.members["a"].stage.on_replied("b", parts(Frame(FrameKind.PONG, 0, 0, 0, sent_ns=1)), 5.0)
    ring.members["a"].stage.on_replied("z", parts(Frame(FrameKind.PONG, 0, 0, 0, sent_ns=1)), 5.0)
    assert "hop_rtt_seconds" not in ring.members["a"].telemetry.snapshot().histograms


def test_a_source_that_waits_for_an_answer_does_not_ping() -> None:
    ring = three_stages()
    ring.open_session("a", session("s", range(3), 2))
    ring.perform(ring.actions()[0])
    ring.tick(PING_INTERVAL_S)
    assert [frame.kind for frame in ring.frames_under_way("a", "b")] == [FrameKind.PREFILL]


def test_a_ping_is_answered_to_any_device_of_the_list() -> None:
    origin, pong = reply_to(stage().on_parts(b"x", "z", parts(Frame(FrameKind.PING, 0, 0, 0, sent_ns=77)), 0.0))
    assert (origin, pong.kind, pong.sent_ns) == (b"x", FrameKind.PONG, 77)


def test_a_probe_is_answered_without_a_micro_batch_and_only_when_it_is_whole() -> None:
    probe = Frame(FrameKind.PROBE, 0, 0, 0, codec=CodecId.FP16, shape=(1, 3, 2), sent_ns=78, payload=bytes(12))
    origin, pong = reply_to(stage().on_parts(b"x", "z", parts(probe), 0.0))
    assert (origin, pong.kind, pong.sent_ns, pong.payload) == (b"x", FrameKind.PONG, 78, b"")
    _, refusal = reply_to(stage().on_parts(b"x", "z", parts(msgspec.structs.replace(probe, shape=(1, 3, 3))), 0.0))
    assert refusal.kind is FrameKind.REFUSAL


# --- what is measured ---


def test_a_steps_time_is_wire_and_held_time() -> None:
    """Each run takes 10 ms here and a frame no time at all; a step is three runs, two of them behind the source."""
    ring = three_stages()
    ring.open_session("a", session("s", range(3), 3))
    ring.settle()
    assert [event for event in ring.events if isinstance(event, TokenEvent)]
    source = ring.members["a"].telemetry.snapshot().histograms
    assert count(source["decode_step_seconds"]) == 2
    assert mean(source["decode_step_seconds"]) == pytest.approx(0.03)
    assert mean(source["decode_wire_seconds"]) == pytest.approx(0.0, abs=1e-5)
    for name in "bc":
        measured = ring.members[name].telemetry.snapshot().histograms
        assert mean(measured["decode_held_seconds"]) == pytest.approx(0.01)
        assert count(measured["prefill_compute_seconds"]) == 1
    assert ring.counters("c")["tokens_sampled"] == 3


def test_the_same_calls_give_the_same_effects() -> None:
    def play() -> list[str]:
        ring = three_stages(rows=2)
        for number in range(2):
            ring.open_session("a", session(f"s{number}", range(5), 4))
        ring.settle()
        sent = [entry.effect for entry in ring.journal if isinstance(entry.effect, Send)]
        return [*(parts(effect.frame)[0].hex() for effect in sent), *map(repr, ring.events)]

    assert play() == play()


@pytest.mark.parametrize("devices", [1, 3])
def test_a_penalty_counts_what_was_generated_and_a_new_session_starts_at_zero(devices: int) -> None:
    ring = three_stages() if devices == 3 else Ring(6)
    if devices == 1:
        ring.add_device("a", LayerRange(0, 6))
        ring.open_micro_batch(1, 1, "a")
    for name in ("s1", "s2"):
        opened = session(name, [1, 2, 3], 20, sampling=Sampling(temperature=0.0, presence_penalty=1000.0))
        ring.open_session("a", opened)
        ring.settle()
        assert ring.tokens(name) == ring.expected(opened)
        assert len(set(ring.tokens(name))) == 20
