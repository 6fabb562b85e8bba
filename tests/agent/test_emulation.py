"""Which device an agent plays, and which files it does not play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig
from agent.emulation import emulated_device
from agent.errors import AgentError, ConfigError, ModelMismatch, ModelNotFound
from agent.loader import load_model
from agent.wire.messages import Load
from planner.errors import BadProfile
from planner.profile_json import dump_profile
from planner.testbed import load_testbed
from planner.types import LayerRange

MODEL = "llama2-7b"
PROFILE = load_testbed("edgeshard-paper", MODEL).profile
REQUEST = Load(MODEL, "no digest", ((0, 2), (30, 32)), "fp32", 128, "fp32", 2, 96)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    path = tmp_path / "times.json"
    path.write_text(dump_profile(PROFILE))
    return AgentConfig(name="nx-1", models_dir=tmp_path / "none", emulate=str(path))


def test_an_agent_plays_the_device_of_its_name(config: AgentConfig) -> None:
    device = emulated_device(config, REQUEST)
    assert (device.profile.name, device.spec) == ("nx-1", PROFILE.spec)


def test_a_load_needs_no_model_and_no_memory(config: AgentConfig) -> None:
    reported: list[tuple[int, int]] = []
    loaded = load_model(REQUEST, config, "cpu", lambda done, total: reported.append((done, total)))
    assert loaded.executor.resident == (LayerRange(0, 2), LayerRange(30, 32))
    assert (loaded.executor.slots, loaded.executor.context, loaded.batch_invariant) == (2, 96, True)
    assert reported == [(4, 4)]
    assert loaded.memory_bytes > 3 << 30


def test_the_only_device_of_a_file_is_played_whatever_its_name(config: AgentConfig) -> None:
    Path(config.emulate).write_text(dump_profile(replace(PROFILE, devices=PROFILE.devices[-1:], links=())))
    assert emulated_device(config, REQUEST).profile.name == "cloud-0"


def test_a_folder_has_a_file_per_model(config: AgentConfig, tmp_path: Path) -> None:
    folder = msgspec.structs.replace(config, emulate=str(tmp_path))
    Path(config.emulate).rename(tmp_path / f"{MODEL}.json")
    assert emulated_device(folder, REQUEST).profile.name == "nx-1"
    for model in ("llama2-13b", "../times", "/etc/passwd", ""):
        with pytest.raises(ModelNotFound):
            emulated_device(folder, msgspec.structs.replace(REQUEST, model=model))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda path: path.unlink(), ModelNotFound, "cannot be read"),
        (lambda path: path.write_bytes(b"\xff"), ModelNotFound, "cannot be read"),
        (lambda path: path.write_text("{}"), BadProfile, "times.json"),
        (lambda path: path.write_text(dump_profile(replace(PROFILE, model="llama2-13b"))), ModelMismatch, "13b"),
        (lambda path: path.write_text(dump_profile(replace(PROFILE, quantization="int4"))), ModelMismatch, "int4"),
        (
            lambda path: path.write_text(dump_profile(replace(PROFILE, devices=PROFILE.devices[:2], links=()))),
            ConfigError,
            "no device nx-1",
        ),
    ],
)
def test_a_file_that_does_not_say_it_is_refused_by_name(
    config: AgentConfig, change: Callable[[Path], object], error: type[Exception], named: str
) -> None:
    change(Path(config.emulate))
    with pytest.raises(error, match=named):
        emulated_device(config, REQUEST)


def test_layers_the_model_does_not_have_are_refused(config: AgentConfig) -> None:
    with pytest.raises(AgentError, match="32 layers"):
        load_model(msgspec.structs.replace(REQUEST, resident=((30, 33),)), config, "cpu", lambda done, total: None)
