"""From a request to a profile: whose weights, which settings, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import AgentConfig
from agent.errors import ConfigError, OutOfMemory
from agent.measuring import OWN_WEIGHTS, RANDOM_WEIGHTS, measure_device
from agent.wire.measure_messages import MeasureDevice
from planner.errors import PlannerError
from planner.profile import DeviceProfile
from planner.profile_json import dump_profile, parse_profile
from planner.testbed import load_testbed

MODELS = Path(__file__).parents[2] / "examples" / "models"
MODEL = "wiki-32l"
CONFIG = (MODELS / MODEL / "config.json").read_text(encoding="utf-8")
REQUEST = MeasureDevice(7, MODEL, CONFIG, "int8", 32, "fp16", (1,), (8,), (16,), 0.3)


def measure(device: AgentConfig, /, **changes: Any) -> DeviceProfile:
    return measure_device(msgspec.structs.replace(REQUEST, **changes), device, "cpu", lambda *_: None)


def config(models_dir: Path = MODELS, **changes: Any) -> AgentConfig:
    return AgentConfig(name="d1", models_dir=models_dir, threads=1, **changes)


def test_the_models_own_weights_are_measured_where_they_are() -> None:
    found = measure(config())
    assert (found.name, found.provider, found.fingerprint["weights"]) == ("d1", "cpu", OWN_WEIGHTS)
    assert found.fingerprint["threads"] == 1
    assert str(found.fingerprint["runtime"]).startswith("onnxruntime ")
    assert found.memory_bytes > 1 << 28
    assert found.host
    assert {"board", "kernel", "power_mode", "temperature_before_c"} <= found.fingerprint.keys()
    assert (found.power is None) == ("power" in found.missing)


def test_a_device_that_is_played_says_what_it_plays(tmp_path: Path) -> None:
    profile = load_testbed("edgeshard-paper", "llama2-7b").profile
    path = tmp_path / "times.json"
    path.write_text(dump_profile(dataclasses.replace(profile, devices=profile.devices[-1:], links=())))
    found = measure(config(emulate=str(path)), model="llama2-7b", quantization="fp32")
    assert found == dataclasses.replace(parse_profile(path.read_text()).devices[0], name="d1")


@pytest.mark.parametrize("change", [{"model": "nowhere"}, {"config": None}])
def test_weights_are_random_where_the_model_is_not_there_or_another(change: dict[str, str | None]) -> None:
    shape = {**json.loads(CONFIG), "num_hidden_layers": 5}
    found = measure(config(), **{name: value or json.dumps(shape) for name, value in change.items()})
    assert found.fingerprint["weights"] == RANDOM_WEIGHTS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", ()),
        ("rows", (0, 1)),
        ("rows", (17,)),
        ("rows", (1,) * 17),
        ("contexts", (-1,)),
        ("contexts", tuple(range(17))),
        ("prompts", (4097,)),
        ("prompts", ()),
        ("seconds", 0.0),
        ("seconds", float("nan")),
        ("seconds", float("inf")),
        ("seconds", 3601.0),
        ("block_size", 0),
        ("config", "[1]"),
        ("config", "{"),
        ("config", '{"a":' * 12_000),
    ],
)
def test_a_request_without_sense_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        measure(config(), **{field: value})


def test_a_model_we_cannot_run_is_the_planners_error() -> None:
    with pytest.raises(PlannerError):
        measure(config(), config="{}")


def test_memory_the_owner_does_not_give_is_not_taken() -> None:
    with pytest.raises(OutOfMemory, match="2 MiB available"):
        measure(config(memory_limit="2 MiB"))


def test_a_profile_can_be_sent() -> None:
    found = measure(config())
    assert msgspec.convert(msgspec.to_builtins(found), DeviceProfile) == found
    assert dataclasses.replace(found, name="d2").name == "d2"
