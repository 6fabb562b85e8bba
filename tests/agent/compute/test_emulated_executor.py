"""An emulated device takes exactly the times the planner counts with, and refuses what a real one refuses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.emulated_executor import SLACK_S, EmulatedExecutor
from planner.cost import CostModel
from planner.device_times import DeviceTimes
from planner.profile import ClusterProfile, DecodePoint, DeviceProfile, HeadPoint, PrefillPoint, Timing
from planner.types import LayerRange
from planner.workload import Workload
from tests.fakes.fake_executor import HIDDEN, VOCABULARY, fake_spec

LAYERS = 6
CONTEXT = 64
LOOK_S = 1e-6
"""What looking at the clock costs: waiting for the rest of a run then comes to an end."""

DEVICE = DeviceProfile(
    name="d",
    host="d",
    provider="none",
    memory_bytes=1 << 30,
    decode=tuple(
        DecodePoint(rows=rows, context=context, layer=Timing(ms=2 + 0.5 * rows + 0.01 * context * rows))
        for rows in (1, 4)
        for context in (0, 40)
    ),
    prefill=(PrefillPoint(tokens=8, layer=Timing(ms=6)), PrefillPoint(tokens=32, layer=Timing(ms=18))),
    head=(HeadPoint(rows=1, head=Timing(ms=3)), HeadPoint(rows=4, head=Timing(ms=4.5))),
    embedding_ms=0.25,
    stage_ms=0.75,
)

WHOLE = LayerRange(0, LAYERS)
PROFILE = ClusterProfile(
    model="m",
    spec=fake_spec(LAYERS, CONTEXT),
    quantization="fp32",
    block_size=128,
    boundary="fp16",
    devices=(DEVICE,),
    links=(),
)


@dataclass
class SlowClock:
    """Moves when it is looked at and when somebody sleeps, who wakes up late."""

    now_s: float = 50.0
    late_s: float = 0.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.now_s += LOOK_S
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds + self.late_s


def executor(clock: SlowClock, layers: LayerRange = WHOLE) -> EmulatedExecutor:
    return EmulatedExecutor(
        PROFILE.spec, DeviceTimes(DEVICE), (layers,), slots=4, context=CONTEXT, clock=clock, sleep=clock.sleep
    )


def run_ms(device: EmulatedExecutor, clock: SlowClock, layers: LayerRange, rows: int, held: int) -> float:
    """One whole run, as the agent makes it."""
    began_s = clock.now_s
    if layers.start == 0:
        hidden = device.embed(np.ones((rows, 1), np.int64))
    else:
        hidden = np.zeros((rows, 1, HIDDEN), np.float32)
    hidden = device.forward(layers, hidden, 0, [held] * rows)
    if layers.stop == LAYERS:
        device.logits(hidden[:, -1])
    return 1e3 * (clock.now_s - began_s)


@given(
    layers=st.sampled_from([LayerRange(0, 6), LayerRange(0, 2), LayerRange(2, 5), LayerRange(4, 6)]),
    rows=st.integers(1, 4),
    context=st.integers(1, CONTEXT - 1),
    late_us=st.sampled_from([0, 30, 79]),
)
def test_a_decode_run_takes_what_the_planner_counts(layers: LayerRange, rows: int, context: int, late_us: int) -> None:
    clock = SlowClock(late_s=1e-6 * late_us)
    device = executor(clock, layers)
    for row in range(rows):
        device.forward(layers, np.zeros((1, context, HIDDEN), np.float32), row, [0])
    workload = Workload(quantization="fp32", prompt=context, tokens=1, context=CONTEXT)
    predicted_ms = CostModel(PROFILE, workload).decode_ms("d", layers, rows)
    assert run_ms(device, clock, layers, rows, context) == pytest.approx(predicted_ms, abs=1e-2)


@given(prompt=st.integers(2, CONTEXT - 1), chunk=st.sampled_from([8, 20, 32]))
def test_a_prompt_takes_what_the_planner_counts(prompt: int, chunk: int) -> None:
    clock = SlowClock()
    device = executor(clock)
    workload = Workload(quantization="fp32", prompt=prompt, tokens=1, context=CONTEXT, chunk=chunk)
    model = CostModel(PROFILE, workload)
    began_s, position = clock.now_s, 0
    for length in model.chunks:
        hidden = device.forward(WHOLE, device.embed(np.ones((1, length), np.int64)), 0, [position])
        position += length
    device.logits(hidden[:, -1])
    assert 1e3 * (clock.now_s - began_s) == pytest.approx(model.prefill_ms("d", WHOLE), abs=2e-2)


def test_waking_up_late_delays_one_run_and_not_its_parts_one_after_the_other() -> None:
    late = SlowClock(late_s=SLACK_S + 0.002)
    in_time = SlowClock()
    late_ms = run_ms(executor(late), late, WHOLE, 1, 0)
    assert late_ms == pytest.approx(run_ms(executor(in_time), in_time, WHOLE, 1, 0) + 2, abs=0.1)
    assert len(late.slept) > 1


def test_a_run_begins_when_it_is_asked_for() -> None:
    clock = SlowClock()
    device = executor(clock, LayerRange(4, 6))
    first_ms = run_ms(device, clock, LayerRange(4, 6), 1, 0)
    clock.now_s += 5.0
    assert run_ms(device, clock, LayerRange(4, 6), 1, 1) == pytest.approx(first_ms, abs=0.1)


def test_tokens_are_told_apart_and_repeat() -> None:
    clock = SlowClock()
    device = executor(clock)
    hidden = device.forward(WHOLE, device.embed(np.array([[3], [50], [3]])), 0, [0, 0, 0])
    assert hidden.shape == (3, 1, HIDDEN)
    logits = device.logits(hidden[:, -1])
    assert logits.shape == (3, VOCABULARY)
    first, second, third = logits.argmax(axis=1)
    assert first == third != second
    assert device.saturated() == 0
    device.close()


@pytest.mark.parametrize(
    ("layers", "shape", "slot", "positions", "named"),
    [
        (LayerRange(0, 3), (1, 1, HIDDEN), 0, [0], "not resident"),
        (LayerRange(2, 4), (1, 1, HIDDEN + 1), 0, [0], "hidden states"),
        (LayerRange(2, 4), (2, 2, HIDDEN), 0, [0, 0], "2 rows of 2 tokens"),
        (LayerRange(2, 4), (1, 1, HIDDEN), 4, [0], "slots 4 to 4"),
        (LayerRange(2, 4), (1, 1, HIDDEN), -1, [0], "slots -1"),
        (LayerRange(2, 4), (1, 1, HIDDEN), 0, [0, 0], "2 positions"),
        (LayerRange(2, 4), (1, 1, HIDDEN), 0, [1], "holds 0 tokens"),
        (LayerRange(2, 4), (1, CONTEXT + 2, HIDDEN), 0, [0], "has room for"),
    ],
)
def test_what_a_real_device_refuses_is_refused_at_once(
    layers: LayerRange, shape: tuple[int, ...], slot: int, positions: list[int], named: str
) -> None:
    clock = SlowClock()
    device = executor(clock, LayerRange(2, 4))
    with pytest.raises(ValueError, match=named):
        device.forward(layers, np.zeros(shape, np.float32), slot, positions)
    assert clock.slept == []


def test_embedding_and_head_are_where_their_layers_are() -> None:
    middle = executor(SlowClock(), LayerRange(2, 4))
    with pytest.raises(ValueError, match="layer 0"):
        middle.embed(np.array([[1]]))
    with pytest.raises(ValueError, match="layer 5"):
        middle.logits(np.zeros((1, HIDDEN), np.float32))
    with pytest.raises(ValueError, match="token ids"):
        executor(SlowClock()).embed(np.array([[VOCABULARY]]))
    with pytest.raises(ValueError, match="expected"):
        executor(SlowClock()).embed(np.zeros((1, 0), np.int64))
