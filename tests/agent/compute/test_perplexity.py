"""Perplexity through our executor against transformers', and what a channel does to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from agent.compute.checkpoint import Checkpoint
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import SessionSettings
from agent.compute.perplexity import (
    PerplexityMeter,
    clean_perplexity,
    negative_log_likelihood,
    perplexity_of,
    send_windows,
)
from planner.channel import Channel, ChannelState, erasing
from planner.types import BoundaryType, LayerRange

WIKI = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"
TEXT = Path(__file__).parents[3] / "examples" / "text" / "wikitext-2-test.txt"
SPLITS = (1, 4, 31)
WINDOW = 128
WINDOWS = 4


@pytest.fixture(scope="module")
def windows() -> NDArray[np.int64]:
    from edgectl.quality.text_windows import windows_of

    text = TEXT.read_text(encoding="utf-8")[:20_000]
    return windows_of(text, WIKI, 4096, tokens=WINDOW * WINDOWS, window=WINDOW).windows


def opened(boundary: BoundaryType) -> OnnxExecutor:
    settings = ExecutorSettings(
        resident=(LayerRange(0, 32),),
        slots=1,
        context=WINDOW,
        quantization="fp32",
        boundary=boundary,
        session=SessionSettings(threads=1),
        cuts=SPLITS,
    )
    return OnnxExecutor.load(Checkpoint.open(WIKI), settings)


@pytest.fixture(scope="module")
def exact() -> Iterator[OnnxExecutor]:
    executor = opened("fp32")
    yield executor
    executor.close()


@pytest.fixture
def meter(exact: OnnxExecutor, windows: NDArray[np.int64]) -> PerplexityMeter:
    return PerplexityMeter(exact, windows, "fp32")


@pytest.fixture(scope="module")
def by_transformers(windows: NDArray[np.int64]) -> float:
    model = transformers.AutoModelForCausalLM.from_pretrained(WIKI, dtype=torch.float32)
    ids = torch.from_numpy(windows)
    with torch.inference_mode():
        # The loss is the mean over every token of every window but its first: windows are equally long.
        loss = model(ids, labels=ids).loss
    return math.exp(float(loss))


def test_equal_to_transformers_whole_and_split_anywhere(meter: PerplexityMeter, by_transformers: float) -> None:
    """The issue allows 1e-3."""
    assert meter.clean() == pytest.approx(by_transformers, rel=1e-5)
    for split in SPLITS:
        assert meter.at(split, None) == pytest.approx(by_transformers, rel=1e-5)
        assert meter.at(split, erasing(0.0)) == pytest.approx(by_transformers, rel=1e-5)


def test_a_hop_in_the_boundary_type_changes_nothing(windows: NDArray[np.int64]) -> None:
    executor = opened("fp16")
    meter = PerplexityMeter(executor, windows, "fp16")
    assert {meter.at(split, None) for split in SPLITS} == {meter.clean()}
    assert PerplexityMeter(executor, windows, "int8").at(4, None) != meter.clean()
    executor.close()


def test_loss_and_noise_cost_perplexity_and_repeat_exactly(meter: PerplexityMeter) -> None:
    clean = meter.clean()
    for split in SPLITS:
        erased = [meter.at(split, erasing(loss, seed=3)) for loss in (0.05, 0.3)]
        noisy = [meter.at(split, Channel((ChannelState(sigma=sigma),), seed=3)) for sigma in (1.0, 5.0)]
        assert clean < erased[0] < erased[1]
        assert clean < noisy[0] < noisy[1]
        assert meter.at(split, erasing(0.05, seed=3)) == erased[0]
        assert meter.at(split, erasing(0.05, seed=4)) != erased[0]


def test_windows_lose_different_elements(exact: OnnxExecutor, windows: NDArray[np.int64]) -> None:
    """The same window twice: with one mask for both the perplexities of the two would be equal."""
    channel = erasing(0.3)
    once = PerplexityMeter(exact, windows[:1], "fp32").at(4, channel)
    twice = PerplexityMeter(exact, np.concatenate([windows[:1]] * 2), "fp32").at(4, channel)
    assert abs(twice - once) > 1e-3


def test_a_schedule_of_one_split_is_that_split(meter: PerplexityMeter) -> None:
    channel = Channel((ChannelState(loss=0.1), ChannelState(loss=0.2, sigma=1.0)), seed=5)
    for split in SPLITS:
        assert meter.scheduled([(0, split)], channel) == pytest.approx(meter.at(split, channel), rel=1e-6)


def test_a_schedule_moves_at_its_positions(exact: OnnxExecutor, windows: NDArray[np.int64]) -> None:
    """A move between two windows: each is as if its own split had held all the time."""
    channel = erasing(0.2, seed=9)
    logs = {}
    for split in (4, 31):
        for count in (1, 2):
            measured = PerplexityMeter(exact, windows[:count], "fp32").at(split, channel)
            logs[split, count] = math.log(measured) * count
    moved = PerplexityMeter(exact, windows[:2], "fp32").scheduled([(0, 4), (WINDOW, 31)], channel)
    expected = (logs[4, 1] + logs[31, 2] - logs[31, 1]) / 2
    assert math.log(moved) == pytest.approx(expected, rel=1e-6)
    amid = PerplexityMeter(exact, windows[:2], "fp32").scheduled([(0, 4), (40, 31)], channel)
    assert amid != pytest.approx(moved, rel=1e-6)


def test_nothing_lost_makes_a_schedule_clean(meter: PerplexityMeter) -> None:
    assert meter.scheduled([(0, 4), (7, 31), (8, 1), (130, 4)], erasing(0.0)) == pytest.approx(meter.clean(), rel=1e-5)


@pytest.mark.parametrize("schedule", [[], [(1, 4)], [(0, 4), (0, 1)], [(0, 4), (9, 1), (5, 4)]])
def test_a_schedule_that_is_none(meter: PerplexityMeter, schedule: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="rising positions from 0"):
        meter.scheduled(schedule, erasing(0.1))


def test_a_broken_model_gives_no_number_and_no_warning(meter: PerplexityMeter) -> None:
    assert math.isnan(meter.at(4, Channel((ChannelState(sigma=3e38),))))
    assert perplexity_of(1e6, 10) == math.inf
    assert math.isnan(perplexity_of(math.nan, 10))


def test_splits_outside_and_windows_without_a_scored_token(exact: OnnxExecutor, windows: NDArray[np.int64]) -> None:
    for split in (0, 32, -1):
        with pytest.raises(ValueError, match=f"split {split}: a model of 32 layers has split points 1 to 31"):
            send_windows(exact, windows, split, "fp32")
    with pytest.raises(ValueError, match="two tokens"):
        send_windows(exact, windows[:, :1], 4, "fp32")


def test_scored_in_pieces_is_the_same(
    exact: OnnxExecutor, windows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = clean_perplexity(exact, windows[:1])
    monkeypatch.setattr("agent.compute.perplexity.LOGIT_ELEMENTS", 7 * 4096)
    assert clean_perplexity(exact, windows[:1]) == pytest.approx(whole, rel=1e-6)


def test_against_the_definition_in_float64(exact: OnnxExecutor, windows: NDArray[np.int64]) -> None:
    hidden = exact.forward(LayerRange(0, 32), exact.embed(windows[:1]), 0, [0])[0].copy()
    logits = exact.logits(hidden[:-1]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(WINDOW - 1), windows[0, 1:]]).sum()
    assert negative_log_likelihood(exact, hidden, windows[0]) == pytest.approx(expected, rel=1e-6)


def test_ticks_come_with_every_window_and_may_end_it(meter: PerplexityMeter) -> None:
    ticks: list[int] = []
    meter.at(4, None, lambda: ticks.append(1))
    assert len(ticks) == 2 * WINDOWS, "once while sent, once while scored"
    meter.at(4, None, lambda: ticks.append(1))
    assert len(ticks) == 3 * WINDOWS, "what is sent is kept"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meter.at(4, None, stop)
