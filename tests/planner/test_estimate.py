"""Estimates from data sheets: marked, and where a published measurement is at hand, near it."""

from __future__ import annotations

import pytest

from planner.catalog import find_device, find_model, parse_device_list
from planner.cost import CostModel
from planner.estimate import ARITHMETIC_SHARE, BANDWIDTH_SHARE, STAGE_MS, estimated_device, estimated_profile
from planner.links import lan_links
from planner.prediction import predict
from planner.problem import Segment
from planner.types import LayerRange
from planner.workload import Workload

FP32 = Workload(quantization="fp32", codec="fp32", prompt=1, tokens=96, context=128)
INT4 = Workload(quantization="int4")


def model_of(devices: str, model: str, workload: Workload) -> CostModel:
    listed, spec = parse_device_list(devices), find_model(model).spec
    links = lan_links([name for name, _ in listed])
    return CostModel(estimated_profile(model, spec, listed, links, workload), workload)


def test_the_calibration_comes_out_again() -> None:
    """EdgeShard (arXiv 2405.14371), table IV: Llama 2 7B in fp32 on one AGX Orin takes 140.34 ms per token."""
    model = model_of("agx-orin-32gb", "llama2-7b", FP32)
    found = predict(model, model.route([Segment(0, 0, 32)]), 1)
    assert found.ms_per_token == pytest.approx(140.34, rel=0.02)


def test_everything_is_marked() -> None:
    profile = model_of("agx-orin-32gb*2,rtx-3090", "llama2-7b", FP32).profile
    assert all(device.estimated for device in profile.devices)
    assert all(link.estimated for link in profile.links)
    for device in profile.devices:
        assert device.power is not None
        assert device.power.source == "estimate"
        assert {point.layer.samples for point in device.decode} == {0}


def test_equal_boards_are_one_class() -> None:
    model = model_of("agx-orin-32gb*12,orin-nx-16gb*2,rtx-3090", "llama2-13b", INT4)
    assert [len(members) for members in model.classes] == [1, 11, 2, 1]


def test_decode_reads_memory_and_a_prompt_computes() -> None:
    model = model_of("rtx-3090", "llama2-7b", Workload(quantization="fp16", prompt=128, tokens=2, context=256))
    layer = LayerRange(1, 2)
    one = model.decode_ms("rtx-3090", layer) - STAGE_MS
    weights = 32 * one / 1e3 * BANDWIDTH_SHARE * 936e9
    assert weights == pytest.approx(32 * 202.4e6 * 2, rel=0.02)
    # A few rows ride along with the weights; a prompt does not.
    assert model.decode_ms("rtx-3090", layer, rows=4) == pytest.approx(model.decode_ms("rtx-3090", layer), rel=0.05)
    assert 1.5 * one < model.prefill_ms("rtx-3090", layer) - STAGE_MS < 128 * one


@pytest.mark.parametrize("quantization", ["fp32", "fp16", "int8", "int4"])
def test_more_work_never_takes_less(quantization: str) -> None:
    workload = Workload(quantization=quantization)  # type: ignore[arg-type]
    device = estimated_device("d", find_device("orin-nano-8gb"), find_model("qwen3-8b").spec, workload)
    for points, times in (
        ([(p.rows, p.context) for p in device.decode], [p.layer.ms for p in device.decode]),
        ([(p.tokens,) for p in device.prefill], [p.layer.ms for p in device.prefill]),
        ([(p.rows,) for p in device.head], [p.head.ms for p in device.head]),
    ):
        timed = list(zip(points, times, strict=True))
        for work, ms in timed:
            for more, longer in timed:
                if all(a <= b for a, b in zip(work, more, strict=True)):
                    assert ms <= longer


def test_faster_memory_decodes_faster() -> None:
    spec = find_model("llama3-8b").spec
    slow, fast = (
        CostModel(estimated_profile("llama3-8b", spec, [("d", find_device(name))], (), INT4), INT4)
        for name in ("orin-nano-8gb", "orin-nano-8gb-super")
    )
    assert fast.decode_ms("d", LayerRange(0, 9)) < slow.decode_ms("d", LayerRange(0, 9))


def test_a_name_that_is_there_twice_is_refused() -> None:
    device = find_device("rtx-3090")
    with pytest.raises(ValueError, match="d is there twice"):
        estimated_profile("x", find_model("qwen3-8b").spec, [("d", device), ("d", device)], (), INT4)


def test_many_rows_compute() -> None:
    """A slow processor: 64 rows take 64 times the arithmetic, and that is what they wait for."""
    model = model_of("raspberry-pi-5-8gb", "tinyllama-1.1b", Workload(quantization="int8", context=2048))
    weights = 44e6
    layer_ms = 64 * 2 * weights / (ARITHMETIC_SHARE * 0.15e12) * 1e3
    found = model.decode_ms("raspberry-pi-5-8gb", LayerRange(1, 2), rows=64)
    assert found == pytest.approx(layer_ms, rel=0.05)
