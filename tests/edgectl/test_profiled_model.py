"""From a name or a directory to what devices are told of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import BadCheckpoint
from edgectl.profiled_model import DEFAULT_MODEL, config_of, profiled_model
from planner.catalog import find_model, model_names
from planner.errors import PlannerError, UnknownName
from planner.model_spec import parse_config
from tests.fakes.fake_engine import MODEL_DIR


@pytest.mark.parametrize("name", model_names())
def test_the_config_of_every_catalogue_model_is_read_back_as_its_spec(name: str) -> None:
    model = profiled_model(name)
    assert model.spec == find_model(name).spec
    assert parse_config(json.loads(model.config)) == model.spec


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
    ],
)
def test_scaled_rotations_survive(rope: dict[str, object]) -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text()) | {"rope_scaling": rope, "rope_parameters": None}
    spec = parse_config(config)
    assert parse_config(config_of(spec)) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 128},
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 20,
        },
        {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": True},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ],
)
def test_what_architectures_differ_in_survives(changes: dict[str, object]) -> None:
    spec = parse_config(json.loads((MODEL_DIR / "config.json").read_text()) | changes)
    assert parse_config(config_of(spec)) == spec


def test_a_directory_is_sent_as_it_is() -> None:
    model = profiled_model(str(MODEL_DIR))
    assert model.name == "wiki-32l"
    assert model.config == (MODEL_DIR / "config.json").read_text()
    assert model.spec.num_layers == 32


def test_the_default_is_known() -> None:
    assert profiled_model(DEFAULT_MODEL).spec.num_layers == 22


def test_near_names_are_suggested() -> None:
    with pytest.raises(UnknownName, match=r"tinyllama-1\.1b"):
        profiled_model("tinyllama1.1b")


@pytest.mark.parametrize(
    ("text", "problem", "message"),
    [
        (None, BadCheckpoint, "--model takes a directory"),
        ("{", BadCheckpoint, "not JSON"),
        ("[]", PlannerError, "must hold an object"),
        ("{}", PlannerError, "not supported"),
    ],
)
def test_a_directory_without_a_usable_config(
    tmp_path: Path, text: str | None, problem: type[Exception], message: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(problem, match=message):
        profiled_model(str(tmp_path))
