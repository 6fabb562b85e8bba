"""From a request to perplexities: the numbers of a measurement in one process, and what is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.compute.calibration import calibrate, calibration_file, write_calibrations
from agent.compute.checkpoint import Checkpoint
from agent.compute.model_digest import model_digest
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import SessionSettings
from agent.compute.perplexity import PerplexityMeter
from agent.config import AgentConfig
from agent.errors import ConfigError, ModelMismatch, ModelNotFound
from agent.quality_measuring import measure_quality
from agent.wire.measure_messages import MAX_QUALITY_CHANNELS, MAX_QUALITY_TOKENS, MeasureQuality, QualityMeasured
from agent.wire.messages import FromAgent, ToAgent, decode, encode
from planner.channel import Channel, ChannelState, erasing
from planner.types import LayerRange

MODELS = Path(__file__).parents[2] / "examples" / "models"
MODEL = "wiki-32l"
WINDOW = 32
CHANNELS = (erasing(0.2, seed=1), Channel((ChannelState(sigma=2.0), ChannelState(loss=0.5)), seed=2))


@pytest.fixture(scope="module")
def request_() -> MeasureQuality:
    tokens = tuple(np.random.default_rng(0).integers(2, 4096, 2 * WINDOW).tolist())
    digest = model_digest(MODELS / MODEL)
    return MeasureQuality(5, MODEL, digest, 32, "fp32", 32, "fp16", "fp16", WINDOW, tokens, 4, CHANNELS)


def config(models_dir: Path = MODELS, **changes: Any) -> AgentConfig:
    return AgentConfig(name="d1", models_dir=models_dir, cache_dir=Path(os.devnull), threads=1, **changes)


def bare_models(directory: Path) -> Path:
    """The model with nothing beside it."""
    (directory / MODEL).mkdir()
    for file in (MODELS / MODEL).iterdir():
        (directory / MODEL / file.name).symlink_to(file)
    return directory


def measure(request: MeasureQuality, device: AgentConfig | None = None, /, **changes: Any) -> list[float]:
    asked = msgspec.structs.replace(request, **changes)
    return list(measure_quality(asked, device or config(), "cpu", lambda *_: None))


def test_the_same_numbers_as_in_one_process(request_: MeasureQuality) -> None:
    settings = ExecutorSettings(
        resident=(LayerRange(0, 32),),
        slots=1,
        context=WINDOW,
        quantization="fp32",
        session=SessionSettings(threads=1),
        cuts=(1, 4, 9),
    )
    executor = OnnxExecutor.load(Checkpoint.open(MODELS / MODEL), settings)
    meter = PerplexityMeter(executor, np.array(request_.tokens).reshape(-1, WINDOW), "fp16")
    assert measure(request_) == [meter.at(4, channel) for channel in CHANNELS]
    executor.close()


def test_request_and_answer_pass_the_wire(request_: MeasureQuality) -> None:
    assert decode(encode(request_), ToAgent) == request_
    for value in (47.25, math.inf):
        assert decode(encode(QualityMeasured(5, 1, value)), FromAgent) == QualityMeasured(5, 1, value)
    assert math.isnan(decode(encode(QualityMeasured(5, 1, math.nan)), FromAgent).perplexity)


def test_progress_is_told_and_may_end_it(request_: MeasureQuality) -> None:
    told: list[tuple[str, int, int]] = []
    results = measure_quality(request_, config(), "cpu", lambda *parts: told.append(parts))
    next(results)
    assert told[-1] == ("perplexity at split 4", 4, 6), "windows sent, windows scored"
    assert told[0][0] == f"loading {MODEL}"
    assert len(list(results)) == 1
    assert told[-1][1:] == (6, 6)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(measure_quality(request_, config(), "cpu", stop))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": 0}, "split 0 of 32 layers"),
        ({"split": 32}, "split 32 of 32 layers"),
        ({"channels": ()}, "0 channels, 1 to 64"),
        ({"channels": CHANNELS[:1] * (MAX_QUALITY_CHANNELS + 1)}, "65 channels"),
        ({"window": 1}, "whole windows of 1"),
        ({"window": 33}, "64 tokens are no whole windows of 33"),
        ({"tokens": ()}, "0 tokens"),
        ({"tokens": (1,) * (MAX_QUALITY_TOKENS + WINDOW)}, "no whole windows"),
        ({"tokens": (4096,) * WINDOW}, "token ids outside 0 to 4095"),
        ({"tokens": (-1,) * WINDOW}, "token ids outside"),
        ({"num_layers": 31}, "wiki-32l has 32 layers"),
        ({"num_layers": 33}, "a model with 32 layers"),
        ({"window": 4096, "tokens": (1,) * 4096}, "context 4096, the model goes to 2048"),
    ],
)
def test_requests_that_make_no_sense(request_: MeasureQuality, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        measure(request_, **change)


def test_another_model_none_and_one_that_is_played(request_: MeasureQuality) -> None:
    with pytest.raises(ModelMismatch):
        measure(request_, digest="0" * 64)
    with pytest.raises(ModelNotFound):
        measure(request_, model="nowhere")
    with pytest.raises(ConfigError, match="played has no weights"):
        measure(request_, config(emulate="times.json"))


@pytest.mark.parametrize("channel", [{"concealment": "lmmse"}, {"concealment": "mean"}, {"protection": "repeat"}])
def test_what_takes_a_calibration_is_refused_without_one(
    request_: MeasureQuality, channel: dict[str, Any], tmp_path: Path
) -> None:
    asked = (CHANNELS[0], Channel((ChannelState(loss=0.2),), **channel))
    with pytest.raises(ConfigError, match=r"not calibrated behind layer 4 on this device; .*edgectl eval calibrate"):
        measure(request_, config(bare_models(tmp_path)), channels=asked)


def test_a_calibration_beside_the_model_is_used(request_: MeasureQuality, tmp_path: Path) -> None:
    hidden = np.random.default_rng(0).normal(size=(512, 128)).astype(np.float32)
    write_calibrations(calibration_file(bare_models(tmp_path), MODEL), [calibrate(hidden, 4)], MODEL, request_.digest)
    mended = Channel(CHANNELS[0].states, seed=1, concealment="mean")
    (zero, mean) = measure(request_, config(tmp_path), channels=(CHANNELS[0], mended))
    assert zero != mean
