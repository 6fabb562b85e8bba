"""What a round runs, in which order, and what each piece took."""

from __future__ import annotations

import pytest

from agent.device.rounds import Rounds
from agent.device.timing import Effort
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL
from tests.fakes.timed_executor import Clock, Pace, TimedExecutor

EFFORT = Effort(seconds=60.0, warm_up=2, most=5)
PACE = Pace(layer=lambda rows, tokens, context: 1e-3 * rows * tokens + 1e-5 * context, head=lambda rows: 0.002 * rows)
ENDS = (LayerRange(0, 1), LayerRange(1, 4))


def executor(*resident: LayerRange) -> TimedExecutor:
    return TimedExecutor(SMALL, resident, slots=4, context=64, clock=Clock(), pace=PACE)


def test_a_decode_round_times_ranges_head_and_embedding_apart() -> None:
    device = executor(*ENDS)
    times = Rounds(device, "fp16", device.clock, device.clock.sleep).decode(4, 50, EFFORT)
    layer_s = 4e-3 + 50e-5
    assert times.ranges == (pytest.approx([PACE.call + layer_s] * 5), pytest.approx([PACE.call + 3 * layer_s] * 5))
    assert times.head == pytest.approx([0.008] * 5)
    assert times.embedding == pytest.approx([PACE.embedding] * 5)
    ((started_s, finished_s),) = times.intervals
    assert finished_s - started_s == pytest.approx(
        7 * (sum(part[0] for part in times.ranges) + times.head[0] + 4 * times.embedding[0])
    )


def test_a_prefill_round_starts_an_empty_row_and_samples_nothing() -> None:
    device = executor(*ENDS)
    rounds = Rounds(device, "fp16", device.clock, device.clock.sleep)
    rounds.decode(1, 60, EFFORT)
    times = rounds.prefill(64, EFFORT)
    assert times.ranges[0] == pytest.approx([PACE.call + 64e-3] * 5)
    assert times.head == []


def test_a_device_in_the_middle_has_neither_end() -> None:
    device = executor(LayerRange(2, 3))
    times = Rounds(device, "fp32", device.clock, device.clock.sleep).decode(1, 0, EFFORT)
    assert (times.head, times.embedding, len(times.ranges)) == ([], [], 1)


def test_the_first_runs_do_not_count() -> None:
    device = executor(*ENDS)
    device.pace = Pace(disturbance=lambda number: 1.0 if number < 2 * EFFORT.warm_up else 0.0)
    times = Rounds(device, "fp16", device.clock, device.clock.sleep).decode(1, 8, EFFORT)
    assert max(max(part) for part in times.ranges) < 1.0
