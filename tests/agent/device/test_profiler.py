"""A profile from executors of known speed, and one from a real one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.device.measured_power import PowerWindows
from agent.device.power import Energy
from agent.device.profiler import ProfileTask, profile_device
from agent.device.sample_layers import Resident
from agent.device.timing import Clock as Reads
from agent.errors import OutOfMemory
from planner.memory import head_bytes, layer_weight_bytes, memory_bytes
from planner.profile import DeviceProfile
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL, RandomWeights
from tests.fakes.timed_executor import Clock, Pace, TimedExecutor

LAYER_S = 0.002


def task(**changes: Any) -> ProfileTask:
    return dataclasses.replace(
        ProfileTask(
            name="d1",
            host="boot",
            provider="cpu",
            spec=SMALL,
            quantization="fp32",
            block_size=32,
            boundary="fp16",
            rows=(1, 4),
            contexts=(8, 100),
            prompts=(16, 64),
            seconds=20.0,
            memory_bytes=1 << 32,
        ),
        **changes,
    )


def pace() -> Pace:
    return Pace(
        layer=lambda rows, tokens, context: LAYER_S * rows * tokens + 1e-6 * context, head=lambda rows: 0.003 * rows
    )


class Bench:
    """Executors made on demand, remembered."""

    def __init__(self, pace_of: Callable[[Resident], Pace] = lambda resident: pace()) -> None:
        self.clock = Clock()
        self.opened: list[TimedExecutor] = []
        self.said: list[tuple[str, int, int]] = []
        self._pace_of = pace_of

    def open(self, resident: Resident, slots: int, context: int) -> TimedExecutor:
        assert all(one.closed for one in self.opened), "two loads at once"
        self.opened.append(TimedExecutor(SMALL, resident, slots, context, self.clock, self._pace_of(resident)))
        return self.opened[-1]

    def profile(self, what: ProfileTask, power: PowerWindows | None = None) -> DeviceProfile:
        found = profile_device(
            what,
            self.open,
            progress=lambda *said: self.said.append(said),
            clock=self.clock,
            sleep=self.clock.sleep,
            power=power,
        )
        assert all(one.closed for one in self.opened)
        return found


def test_every_number_of_a_known_device_is_found() -> None:
    bench = Bench()
    found = bench.profile(task())
    assert {(point.rows, point.context): point.layer.ms for point in found.decode} == pytest.approx(
        {(rows, context): 2.0 * rows + context / 1e3 for rows in (1, 4) for context in (8, 100)}
    )
    assert {point.tokens: point.layer.ms for point in found.prefill} == pytest.approx({16: 32.0, 64: 128.0})
    assert {point.rows: point.head.ms for point in found.head} == pytest.approx({1: 3.0, 4: 12.0})
    assert found.embedding_ms == pytest.approx(0.01)
    assert found.stage_ms == pytest.approx(0.5)
    assert (found.name, found.host, found.provider, found.memory_bytes) == ("d1", "boot", "cpu", 1 << 32)
    assert found.missing == {"power": "no sensor was asked"}
    assert found.memory is not None


def test_what_waking_up_costs_belongs_to_a_stage() -> None:
    found = Bench(lambda resident: dataclasses.replace(pace(), waking=0.0007)).profile(task())
    assert found.stage_ms == pytest.approx(1.2)
    assert {point.rows: point.layer.ms for point in found.decode if point.context == 8} == pytest.approx(
        {1: 2.008, 4: 8.008}
    )


@pytest.mark.parametrize("begins_s", [1.0, 6.0, 12.0])
def test_a_disturbance_of_a_few_seconds_moves_nothing(begins_s: float) -> None:
    bench = Bench()
    started_s = bench.clock()

    def factor() -> float:
        return 1.5 if begins_s <= bench.clock() - started_s < begins_s + 4.0 else 1.0

    calm = pace()
    disturbed = dataclasses.replace(
        calm, layer=lambda *run: factor() * calm.layer(*run), head=lambda rows: factor() * calm.head(rows)
    )
    bench._pace_of = lambda resident: disturbed
    found = bench.profile(task())
    quiet = Bench().profile(task())
    for point, expected in zip(found.decode, quiet.decode, strict=True):
        assert point.layer.ms == pytest.approx(expected.layer.ms)
    assert found.stage_ms == pytest.approx(quiet.stage_ms)


def test_the_time_allowed_is_used_and_kept() -> None:
    bench = Bench()
    started_s = bench.clock()
    bench.profile(task(seconds=30.0))
    assert 25.0 < bench.clock() - started_s < 36.0


def test_progress_counts_every_part_once() -> None:
    bench = Bench()
    bench.profile(task())
    assert [done for _, done, _ in bench.said] == list(range(29))
    assert {total for _, _, total in bench.said} == {29}
    assert bench.said[0][0] == "loading layers [0, 1) and [1, 4)"


def test_a_slow_device_leaves_points_out_and_says_so() -> None:
    bench = Bench(lambda resident: Pace(layer=lambda rows, tokens, context: 0.5))
    found = bench.profile(task(seconds=2.0))
    assert [(point.rows, point.context) for point in found.decode] == [(1, 8)]
    assert [point.tokens for point in found.prefill] == [16]
    assert found.missing["decode"].startswith("no time was left for decode, 1 rows at 100")


def test_layers_one_after_another_are_averaged_and_never_loaded_together() -> None:
    one_with_head = memory_bytes(SMALL, LayerRange(3, 4), quantization="fp32", block_size=32, slots=1, context=64)
    slower = {0: 0.001, 2: 0.002, 3: 0.006}
    bench = Bench(lambda resident: Pace(layer=lambda *_: slower[resident[0].start], call=0.0))
    found = bench.profile(task(rows=(1,), contexts=(8,), prompts=(64,), memory_bytes=one_with_head))
    assert [one.resident for one in bench.opened] == [(LayerRange(n, n + 1),) for n in (0, 2, 3)]
    assert found.decode[0].layer.ms == pytest.approx(3.0)
    assert found.stage_ms == 0.0
    assert found.head[0].head.ms == pytest.approx(3.0)


def test_a_head_without_room_is_scaled_by_weights_and_said_so() -> None:
    sizes = {"quantization": "fp32", "block_size": 32}
    one = memory_bytes(SMALL, LayerRange(0, 1), **sizes, slots=1, context=64)
    found = Bench().profile(task(rows=(1,), contexts=(8,), prompts=(64,), memory_bytes=one))
    factor = head_bytes(SMALL, **sizes) / layer_weight_bytes(SMALL, **sizes)
    assert found.head[0].head.ms == pytest.approx(found.decode[0].layer.ms * factor)
    assert "head" in found.missing
    with pytest.raises(OutOfMemory):
        Bench().profile(task(memory_bytes=1 << 20))


class SteadyPower:
    """2 W at rest and 10 W more while anything is computed."""

    def __init__(self, clock: Reads) -> None:
        self._rest_ends_s = clock() + 1.0

    def energy(self, from_s: float, to_s: float) -> Energy:
        watts = 2.0 if to_s <= self._rest_ends_s else 12.0
        spent_s = to_s - from_s
        return Energy(joules=watts * spent_s, mean_w=watts, samples=9, gaps=0, covered_s=spent_s, source="sysfs")


def test_power_is_of_rest_decode_and_prefill() -> None:
    bench = Bench()

    found = bench.profile(task(), PowerWindows(SteadyPower(bench.clock), clock=bench.clock, sleep=bench.clock.sleep))
    assert found.power is not None
    assert (found.power.idle_w, found.power.decode_w, found.power.prefill_w) == pytest.approx((2.0, 12.0, 12.0))
    assert found.power.joules_per_token_layer == pytest.approx(12.0 * found.decode[0].layer.ms / 1e3)
    assert found.missing == {}


def test_a_real_executor_is_profiled() -> None:
    def open_executor(resident: Resident, slots: int, context: int) -> OnnxExecutor:
        settings = ExecutorSettings(resident=resident, slots=slots, context=context, quantization="fp32")
        return OnnxExecutor.load(RandomWeights(SMALL), settings)

    ticks = iter(range(1 << 30))
    found = profile_device(
        task(seconds=1.0),
        open_executor,
        progress=lambda *_: None,
        clock=lambda: next(ticks) / 1e3,
        sleep=lambda _: None,
    )
    assert len(found.decode) + len(found.prefill) + len(found.head) == 8
    assert all(point.layer.samples >= 3 for point in found.decode)
