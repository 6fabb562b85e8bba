"""From a Load request to an executor, or to an error that names what is wrong and where."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.calibration import SUFFIX, write_calibrations
from agent.compute.checkpoint import Checkpoint
from agent.compute.model_digest import model_digest
from agent.config import AgentConfig
from agent.errors import AgentError, BadCheckpoint, ConfigError, ModelMismatch, ModelNotFound, OutOfMemory
from agent.loader import MIB, Progress, check_memory, load_model
from agent.wire.messages import Load
from planner.channel import Channel, ChannelState
from planner.memory import memory_bytes
from planner.types import LayerRange
from tests.fakes.calibrations import calibration

MODELS = Path(__file__).parents[2] / "examples" / "models"
MODEL = "wiki-32l"
SPEC = Checkpoint.open(MODELS / MODEL).spec


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AgentConfig:
    return AgentConfig(
        name="d1", models_dir=MODELS, cache_dir=tmp_path_factory.mktemp("cache"), threads=1, memory_limit="2 GiB"
    )


@pytest.fixture(scope="module")
def request_(config: AgentConfig) -> Load:
    digest = model_digest(MODELS / MODEL, config.cache_dir)
    return Load(MODEL, digest, ((0, 2),), "fp32", 32, "fp16", 2, 64)


def appending(reported: list[tuple[int, int]]) -> Progress:
    def progress(done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        reported.append((done, total))

    return progress


def load(request: Load, config: AgentConfig, **changes: Any) -> list[tuple[int, int]]:
    reported: list[tuple[int, int]] = []
    loaded = load_model(msgspec.structs.replace(request, **changes), config, "cpu", appending(reported))
    loaded.executor.close()
    return reported


def test_a_model_is_loaded_as_asked(request_: Load, config: AgentConfig) -> None:
    reported: list[tuple[int, int]] = []
    request = msgspec.structs.replace(request_, resident=((0, 2), (30, 32)))
    loaded = load_model(request, config, "cpu", appending(reported))
    executor = loaded.executor
    assert loaded.request == request
    assert (executor.resident, executor.slots, executor.context) == ((LayerRange(0, 2), LayerRange(30, 32)), 2, 64)
    assert reported[-1] == (4, 4)
    assert reported == sorted(reported)
    assert loaded.batch_invariant
    assert 0 < loaded.memory_bytes < 2 << 30
    hidden = executor.forward(LayerRange(0, 2), executor.embed(np.array([[1, 2, 3]])), 0, (0,))
    assert hidden.shape == (1, 3, SPEC.hidden_size)
    executor.close()


def logits(request: Load, config: AgentConfig) -> bytes:
    """Of one prompt through the first layers."""
    loaded = load_model(request, config, "cpu", appending([]))
    hidden = loaded.executor.embed(np.array([[1, 2, 3]]))
    found = loaded.executor.forward(LayerRange(0, 2), hidden, 0, (0,)).tobytes()
    loaded.executor.close()
    return found


def test_quantized_layers_are_kept_found_again_and_mended(request_: Load, config: AgentConfig, tmp_path: Path) -> None:
    request = msgspec.structs.replace(request_, quantization="int4")
    kept, bare = (msgspec.structs.replace(config, cache_dir=tmp_path, cache_limit=limit) for limit in ("1 GiB", "0"))
    expected = logits(request, bare)
    assert not list(tmp_path.glob("layers/**/*.safetensors"))
    assert logits(request, kept) == expected
    files = sorted(tmp_path.glob("layers/**/*.safetensors"))
    assert [file.name for file in files] == ["layer-000.safetensors", "layer-001.safetensors"]
    written = [file.stat().st_mtime_ns for file in files]
    assert logits(request, kept) == expected
    assert [file.stat().st_mtime_ns for file in files] == written
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert logits(request, kept) == expected
    assert files[1].read_bytes() == whole
    assert files[0].stat().st_mtime_ns == written[0]


def test_float_layers_are_not_written_a_second_time(request_: Load, config: AgentConfig, tmp_path: Path) -> None:
    load(request_, msgspec.structs.replace(config, cache_dir=tmp_path))
    assert not list(tmp_path.glob("layers/**/*.safetensors"))


def test_another_content_is_refused_by_both_digests(request_: Load, config: AgentConfig) -> None:
    with pytest.raises(ModelMismatch) as caught:
        load(request_, config, digest="f" * 64)
    for words in (MODEL, str(MODELS), request_.digest[:12], "f" * 12):
        assert words in str(caught.value)


def test_a_model_that_is_not_there_is_named_with_its_place(request_: Load, config: AgentConfig) -> None:
    with pytest.raises(ModelNotFound, match=r"nowhere.*" + str(MODELS)):
        load(request_, config, model="nowhere")


@pytest.mark.parametrize("name", ["../models/wiki-32l", "/etc", "", "wiki-32l/../wiki-32l"])
def test_a_name_cannot_leave_the_models_directory(request_: Load, config: AgentConfig, name: str) -> None:
    with pytest.raises(AgentError):
        load(request_, config, model=name)


def test_a_truncated_file_is_named(request_: Load, config: AgentConfig, tmp_path: Path) -> None:
    shutil.copytree(MODELS / MODEL, tmp_path / MODEL)
    weights = tmp_path / MODEL / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        load(request_, msgspec.structs.replace(config, models_dir=tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resident": ()}, r"\(\) of a model with 32 layers"),
        ({"resident": ((0, 33),)}, "32 layers"),
        ({"resident": ((2, 2),)}, r"\[2, 2\) is empty"),
        ({"resident": ((-1, 2),)}, r"\[-1, 2\)"),
        ({"context": 0}, "context 0"),
        ({"context": 1 << 20}, "context 1048576, the model goes to"),
    ],
)
def test_a_request_that_the_model_cannot_meet_is_refused(
    request_: Load, config: AgentConfig, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(request_, config, **changes)


def test_too_little_memory_is_refused_before_anything_is_loaded(request_: Load, config: AgentConfig) -> None:
    """The owner's limit counts, and what is short is said in MiB for which layers."""
    with pytest.raises(OutOfMemory, match=r"^\d+ MiB short: layers \[0, 2\) need .*; 10 MiB available$"):
        load(request_, msgspec.structs.replace(config, memory_limit="10 MiB"))


@given(
    stop=st.integers(1, 32),
    slots=st.integers(1, 8),
    context=st.integers(1, 256),
    missing_bytes=st.integers(-5, 5 << 20),
)
def test_what_is_short_is_what_the_formula_says(stop: int, slots: int, context: int, missing_bytes: int) -> None:
    layers = LayerRange(0, stop)
    request = Load(MODEL, "", ((0, stop),), "int4", 32, "fp16", slots, context)
    needed = memory_bytes(SPEC, layers, quantization="int4", block_size=32, slots=slots, context=context)
    if missing_bytes <= 0:
        assert check_memory(request, SPEC, (layers,), needed - missing_bytes) == needed
        return
    with pytest.raises(OutOfMemory) as caught:
        check_memory(request, SPEC, (layers,), needed - missing_bytes)
    assert str(caught.value).startswith(f"{-(-missing_bytes // MIB)} MiB short: layers {layers} need ")


def calibrated(request: Load, config: AgentConfig, digest: str, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says when the model is loaded with a calibration behind layer 1 and something is lost there."""
    path = config.cache_dir / f"{request.digest}{SUFFIX}"
    write_calibrations(path, [calibration(1, SPEC.hidden_size)], MODEL, digest)
    channel = Channel((ChannelState(loss=0.3),), concealment="lmmse")
    try:
        loaded = load_model(request, config, "cpu", appending([]))
        hidden = np.ones((1, SPEC.hidden_size), np.float32)
        loaded.receiver.damage(hidden, channel, 1, 0, codec="fp16")
        loaded.executor.close()
    finally:
        path.unlink()
    return " ".join(f"{record.message} {vars(record)}" for record in caplog.records)


def test_what_is_known_of_the_model_comes_with_it(
    request_: Load, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    assert "not_calibrated" not in calibrated(request_, config, request_.digest, caplog)


def test_what_is_known_of_another_model_is_named_and_not_used(
    request_: Load, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    said = calibrated(request_, config, "0" * 64, caplog)
    for word in ("calibration_refused", "digest 000000000000", "not_calibrated"):
        assert word in said
