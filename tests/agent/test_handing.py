"""Jobs on keys and values of a pool: what is read at one device is what is written at another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent import handing
from agent.effects import Hands, Job, Outcome
from agent.wire.codec import CodecId, FrameKind, RowRef
from planner.types import LayerRange
from tests.fakes.fake_executor import HIDDEN, FakeExecutor

LAYERS = LayerRange(1, 3)


def job(hands: Hands, rows: tuple[RowRef, ...], tokens: int) -> Job:
    return Job(
        kind=FrameKind.TAKE,
        micro_batch=1,
        epoch=1,
        step=0,
        rows=rows,
        sample=False,
        layers=LAYERS,
        first_slot=1,
        positions=tuple(row.position for row in rows),
        active=tuple(range(len(rows))),
        codec=CodecId.FP32,
        shape=(len(rows), tokens, 2 * 2 * HIDDEN),
        hands=hands,
    )


def device() -> FakeExecutor:
    return FakeExecutor(4, (LayerRange(0, 4),), slots=4, context=16)


def run(job: Job, executor: FakeExecutor) -> Outcome:
    return handing.run(job, executor, lambda: 5.0)


def filled() -> FakeExecutor:
    executor = device()
    for slot in range(4):
        executor.forward(LayerRange(0, 4), executor.embed(np.arange(7)[None] + slot), slot, [0])
    return executor


def test_what_is_read_here_is_written_there() -> None:
    one, other = filled(), device()
    rows = (RowRef(0, 1, 0), RowRef(2, 1, 0))
    read = run(job(Hands.READ, rows, 5), one)
    assert (read.refused, read.codec, read.shape) == ("", CodecId.FP32, (2, 5, 4 * HIDDEN))
    assert len(read.payload) == 2 * 5 * 4 * HIDDEN * 4
    written = run(replace(job(Hands.WRITE, rows, 5), payload=read.payload), other)
    assert (written.refused, written.payload, written.shape) == ("", b"", (0, 0, 0))
    for slot in (1, 3):
        np.testing.assert_array_equal(other.read_kv(LAYERS, slot, 0, 5), one.read_kv(LAYERS, slot, 0, 5))
    with pytest.raises(ValueError, match="slot 2"):
        other.read_kv(LAYERS, 2, 0, 1)


def test_only_active_rows_are_written() -> None:
    one, other = filled(), device()
    rows = (RowRef(0, 1, 0), RowRef(2, 1, 0))
    read = run(job(Hands.READ, rows, 5), one)
    run(replace(job(Hands.WRITE, rows, 5), payload=read.payload, active=(1,)), other)
    np.testing.assert_array_equal(other.read_kv(LAYERS, 3, 0, 5), one.read_kv(LAYERS, 3, 0, 5))
    with pytest.raises(ValueError, match="slot 1"):
        other.read_kv(LAYERS, 1, 0, 1)


def test_what_was_said_elsewhere_goes_on_as_it_is() -> None:
    passed = run(replace(job(Hands.PASS, (RowRef(0, 1, 0),), 5), payload=b"abc"), device())
    assert (passed.payload, passed.shape, passed.codec, passed.refused) == (
        b"abc",
        (1, 5, 4 * HIDDEN),
        CodecId.FP32,
        "",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codec": CodecId.FP16}, "keys and values are fp16, those of this device fp32"),
        ({"layers": LayerRange(1, 4)}, "elements of keys and values"),
        ({"payload": b"12345678"}, "2 elements of keys and values"),
        ({"first_slot": 2, "rows": (RowRef(0, 1, 1),)}, "slot 2"),
    ],
)
def test_what_does_not_fit_is_an_outcome(change: dict[str, object], words: str) -> None:
    payload = run(job(Hands.READ, (RowRef(0, 1, 0),), 5), filled()).payload
    fields: dict[str, object] = {"payload": payload, **change}
    refused = run(replace(job(Hands.WRITE, (RowRef(0, 1, 0),), 5), **fields), device())  # type: ignore[arg-type]
    assert words in refused.refused


def test_what_is_not_there_cannot_be_read() -> None:
    refused = run(job(Hands.READ, (RowRef(0, 1, 3),), 5), filled())
    assert "slot 1" in refused.refused
    assert (refused.payload, refused.shape) == (b"", (0, 0, 0))
