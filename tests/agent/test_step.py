"""One job on one executor: what goes in, what comes out, and that idle rows change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent import step
from agent.compute import kernels
from agent.compute.calibration import Calibrations, calibrate, write_calibrations
from agent.compute.damage import damage
from agent.compute.receiver import Receiver
from agent.effects import Job, RowSampling
from agent.wire.codec import CODEC_IDS, Answered, CodecId, FrameKind, RowRef, payload_bytes
from agent.wire.messages import Sampling
from planner.channel import Channel, ChannelState, Concealment, erasing
from planner.types import Codec, LayerRange
from tests.fakes.fake_executor import HIDDEN, VOCABULARY, FakeExecutor, expected_tokens

WHOLE = LayerRange(0, 4)
GREEDY = Sampling(temperature=0.0)
PROMPT = (5, 6, 7)


def executor() -> FakeExecutor:
    return FakeExecutor(4, (WHOLE,), slots=4, context=16)


def prefill(prompt: tuple[int, ...] = PROMPT, **changes: Any) -> Job:
    job = Job(
        kind=FrameKind.PREFILL,
        micro_batch=1,
        epoch=1,
        step=0,
        rows=(RowRef(0, 1, 0),),
        sample=True,
        layers=WHOLE,
        first_slot=0,
        positions=(0,),
        active=(0,),
        tokens=(prompt,),
        shape=(1, len(prompt), HIDDEN),
        choosers=(RowSampling(GREEDY),),
    )
    return dataclasses.replace(job, **changes)


def decode_job(tokens: tuple[int, ...], rows: tuple[int, ...], positions: tuple[int, ...]) -> Job:
    """A decode step of `rows`, where `positions` has one entry for every slot from the first row to the last."""
    return prefill(
        kind=FrameKind.DECODE,
        rows=tuple(RowRef(row, 1, positions[row - rows[0]]) for row in rows),
        tokens=tuple((token,) for token in tokens),
        shape=(len(rows), 1, HIDDEN),
        first_slot=rows[0],
        positions=positions,
        active=tuple(row - rows[0] for row in rows),
        choosers=tuple(RowSampling(GREEDY) for _ in rows),
    )


def clock() -> float:
    return 0.0


def test_a_whole_model_samples_the_oracles_token() -> None:
    outcome = step.run(prefill(), executor(), clock)
    assert [answer.token for answer in outcome.answers] == expected_tokens(4, PROMPT, 1, GREEDY)
    assert (outcome.payload, outcome.shape) == (b"", (0, 0, 0))


def test_a_chunk_that_is_not_the_last_samples_nothing() -> None:
    outcome = step.run(prefill(sample=False, choosers=()), executor(), clock)
    assert outcome.answers == ()


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_two_halves_joined_by_a_payload_are_one_whole(name: Codec) -> None:
    front = step.run(prefill(layers=LayerRange(0, 2), outgoing=CODEC_IDS[name], choosers=()), executor(), clock)
    assert front.answers == ()
    assert len(front.payload) == payload_bytes(CODEC_IDS[name], front.shape)
    behind = prefill(
        layers=LayerRange(2, 4), tokens=(), payload=front.payload, codec=CODEC_IDS[name], shape=front.shape
    )
    assert step.run(behind, executor(), clock).answers == step.run(prefill(), executor(), clock).answers


def test_int8_carries_what_its_kernel_packs() -> None:
    front = step.run(prefill(layers=LayerRange(0, 2), outgoing=CodecId.INT8, choosers=()), executor(), clock)
    hidden = executor().forward(LayerRange(0, 2), executor().embed(np.array([PROMPT])), 0, (0,))
    assert bytes(front.payload) == kernels.pack(hidden, "int8").tobytes()


def test_idle_slots_in_between_compute_and_change_nothing() -> None:
    alone, shared = executor(), executor()
    for one in (alone, shared):
        for row, tokens in enumerate([(5, 6, 7), (8, 9), (3, 4)]):
            step.run(prefill(tokens, rows=(RowRef(row, 1, 0),), first_slot=row), one, clock)
    both = step.run(decode_job((11, 12), (0, 2), (3, 2, 2)), shared, clock)
    each = [step.run(decode_job((token,), (row,), (at,)), alone, clock) for token, row, at in ((11, 0, 3), (12, 2, 2))]
    assert both.answers == tuple(outcome.answers[0] for outcome in each)
    # The idle slot goes on at its own position as though nothing had been.
    goes_on = decode_job((13,), (1,), (2,))
    assert step.run(goes_on, shared, clock).answers == step.run(goes_on, alone, clock).answers


def test_the_draw_is_keyed_by_the_position_of_the_new_token() -> None:
    sampling = Sampling(seed=11, temperature=40.0)
    expected = expected_tokens(4, PROMPT, 3, sampling)
    one = executor()
    tokens = [step.run(prefill(choosers=(RowSampling(sampling),)), one, clock).answers[0].token]
    for position in (3, 4):
        job = dataclasses.replace(decode_job((tokens[-1],), (0,), (position,)), choosers=(RowSampling(sampling),))
        tokens.append(step.run(job, one, clock).answers[0].token)
    assert tokens == expected


def test_penalties_and_logprobs_are_the_rows_own() -> None:
    plain = step.run(prefill(), executor(), clock).answers[0]
    chooser = RowSampling(Sampling(temperature=0.0, presence_penalty=1000.0, logprobs=True, top_logprobs=2))
    chooser.generated[plain.token] += 1
    answer = step.run(prefill(choosers=(chooser,)), executor(), clock).answers[0]
    assert answer.token != plain.token
    assert answer.top[0][0] == plain.token
    assert answer.logprob is not None
    assert plain == Answered(plain.token)


class Recording(FakeExecutor):
    """Keeps what arrives, with the position of each token, and passes it on."""

    def __init__(self) -> None:
        super().__init__(4, (LayerRange(2, 4),), slots=4, context=16)
        self.seen: dict[int, NDArray[np.float32]] = {}

    def forward(
        self, layers: LayerRange, hidden: NDArray[np.float32], slot: int, positions: Sequence[int]
    ) -> NDArray[np.float32]:
        for row, position in zip(hidden, positions, strict=True):
            self.seen.update({position + token: state.copy() for token, state in enumerate(row)})
        return hidden


def damaged(
    hidden: NDArray[np.float32],
    name: Codec,
    start: int,
    chunk: int,
    receiver: Receiver | None = None,
    **changes: Any,
) -> NDArray[np.float32]:
    """What a stage that starts at layer `start` computes on, when [tokens, H] arrives in chunks."""
    one = Recording()
    for first in range(0, len(hidden), chunk):
        part = hidden[None, first : first + chunk]
        job = prefill(
            layers=LayerRange(start, 4),
            rows=(RowRef(0, 1, first),),
            positions=(first,),
            tokens=(),
            payload=kernels.pack(np.ascontiguousarray(part), name).data,
            codec=CODEC_IDS[name],
            shape=part.shape,
            outgoing=CodecId.FP32,
            **{"channel": erasing(0.3, 7), **changes},
        )
        step.run(job, one, clock, receiver)
    return np.stack([one.seen[position] for position in range(len(hidden))])


def decode(states: NDArray[np.float32], rows: tuple[int, ...], positions: tuple[int, ...], channel: Channel) -> Job:
    """A decode step of some rows, whose hidden states [n, 1, H] came in bf16 over a channel; `positions` is of all."""
    return prefill(
        kind=FrameKind.DECODE,
        layers=LayerRange(2, 4),
        rows=tuple(RowRef(row, 1, positions[row]) for row in rows),
        positions=positions,
        active=rows,
        tokens=(),
        payload=kernels.pack(states, "bf16").data,
        codec=CodecId.BF16,
        shape=states.shape,
        outgoing=CodecId.FP32,
        channel=channel,
    )


def test_losses_depend_on_neither_chunks_nor_batch_nor_codec() -> None:
    # Small integers: every codec but int8 carries them exactly.
    hidden = np.random.default_rng(1).integers(1, 9, (10, HIDDEN)).astype(np.float32)
    whole = damaged(hidden, "fp32", 2, 10)
    np.testing.assert_array_equal(whole, damaged(hidden, "fp16", 2, 3))
    oracle = hidden.copy()
    kernels.erase(oracle, 0.3, 7, 2, 0)
    np.testing.assert_array_equal(whole, oracle)
    assert 0 < (whole == 0).sum() < hidden.size
    # The same tokens as rows of one decode step, an idle slot between them, each at its own position.
    one, rows, positions = Recording(), (0, 1, 3), (4, 9, 0, 2)
    states = hidden[[4, 9, 2]][:, None]
    step.run(decode(states, rows, positions, erasing(0.3, 7)), one, clock)
    for position in (4, 9, 2):
        np.testing.assert_array_equal(one.seen[position], whole[position])


@pytest.mark.parametrize("concealment", ["lmmse", "previous"])
def test_a_receiver_mends_the_same_whatever_the_chunks(concealment: Concealment, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    known = calibrate(rng.normal(size=(500, HIDDEN)).astype(np.float32) + 3, 2)
    write_calibrations(tmp_path / "c", [known], "tiny", "ab" * 32)
    hidden = rng.integers(1, 9, (10, HIDDEN)).astype(np.float32)
    channel = Channel((ChannelState(loss=0.4),), 7, concealment=concealment)
    oracle = hidden.copy()
    damage(oracle, channel, 2, 0, calibration=known)
    assert not np.array_equal(oracle, hidden)
    for chunk in (1, 3, 10):
        receiver = Receiver(Calibrations(tmp_path / "c", "ab" * 32, HIDDEN))
        np.testing.assert_array_equal(damaged(hidden, "fp16", 2, chunk, receiver, channel=channel), oracle)
    rescaled = hidden.copy()
    damage(rescaled, channel, 2, 0)
    np.testing.assert_array_equal(damaged(hidden, "fp16", 2, 3, channel=channel)[0], rescaled[0])


def test_every_row_has_its_own_token_before_and_its_codecs_packets() -> None:
    """Rows 0, 1 and 3 of a decode step, after a step of which nothing was lost."""
    rows, receiver = (0, 1, 3), Receiver()
    states = np.random.default_rng(1).integers(1, 9, (2, 3, 1, 64)).astype(np.float32)
    lossy = ChannelState(loss=0.5)
    channel = Channel(
        (ChannelState(), lossy), granularity="packet", packet_bytes=64, concealment="previous", coherence_tokens=4
    )
    one = Recording()
    for turn, payload in enumerate(states):
        positions = tuple(3 + turn + 8 * row for row in range(4))
        step.run(decode(payload, rows, positions, channel), one, clock, receiver)
    for number, row in enumerate(rows):
        expected = states[1, number].copy()
        damage(expected, channel, 2, 4 + 8 * row, codec="bf16", before=states[0, number, 0])
        np.testing.assert_array_equal(one.seen[4 + 8 * row], expected[0])


def test_losses_depend_on_seed_and_layer_boundary() -> None:
    hidden = np.ones((10, HIDDEN), np.float32)
    masks = [damaged(hidden, "fp32", start, 10, channel=erasing(0.3, seed)) for start, seed in ((2, 7), (3, 7), (2, 8))]
    assert not any(np.array_equal(one, other) for one, other in combinations(masks, 2))
    np.testing.assert_array_equal(damaged(hidden, "fp32", 2, 10, channel=erasing(0.0)), hidden)
    assert not damaged(hidden, "fp32", 2, 10, channel=erasing(1.0)).any()


def test_nothing_is_lost_on_the_way_into_the_source() -> None:
    plain = step.run(prefill(outgoing=CodecId.FP32, choosers=()), executor(), clock)
    lossy = step.run(prefill(outgoing=CodecId.FP32, choosers=(), channel=erasing(0.9)), executor(), clock)
    assert bytes(plain.payload) == bytes(lossy.payload)


def test_the_clock_is_read_before_and_after() -> None:
    ticks = count(10)
    outcome = step.run(prefill(), executor(), lambda: float(next(ticks)))
    assert (outcome.started_s, outcome.finished_s) == (10.0, 11.0)


def test_what_saturates_in_a_run_is_counted_once() -> None:
    class Saturating(FakeExecutor):
        clipped = 5

        def saturated(self) -> int:
            self.clipped += 2
            return self.clipped

    assert step.run(prefill(), Saturating(4, (WHOLE,), slots=1, context=16), clock).saturated == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"first_slot": 4},
        {"positions": (3,)},
        {"layers": LayerRange(0, 5)},
        {"tokens": ((1, VOCABULARY, 2),)},
        {"tokens": ((-1, 1, 2),)},
    ],
)
def test_a_job_that_cannot_run_is_a_value_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        step.run(prefill(**changes), executor(), clock)
