"""The model a profile is made for: a directory with a config.json, or a name of the catalogue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadCheckpoint
from planner.catalog import find_model
from planner.errors import BadConfigField
from planner.model_spec import SUPPORTED, ModelSpec, parse_config

DEFAULT_MODEL = "tinyllama-1.1b"
"""A shape that every device has room for, a layer of which takes long enough to be timed."""


@dataclass(frozen=True, slots=True)
class ProfiledModel:
    """What devices are told about a model. They take weights from a directory of its name, or random ones."""

    name: str
    config: str
    """config.json."""
    spec: ModelSpec


def profiled_model(text: str) -> ProfiledModel:
    """A model directory of this machine, else a model of the catalogue.

    Raises BadCheckpoint and PlannerError for a directory, UnknownName with near names otherwise.
    """
    directory = Path(text).expanduser()
    if directory.is_dir():
        return _of_directory(directory.resolve())
    found = find_model(text)
    return ProfiledModel(found.name, json.dumps(config_of(found.spec)), found.spec)


def _of_directory(directory: Path) -> ProfiledModel:
    path = directory / "config.json"
    try:
        config = path.read_text(encoding="utf-8")
        values = json.loads(config)
    except OSError as problem:
        raise BadCheckpoint(f"{path}: {problem.strerror}; --model takes a directory with one, or a name") from problem
    except ValueError as problem:
        raise BadCheckpoint(f"{path}: not JSON: {problem}") from problem
    if not isinstance(values, dict):
        raise BadConfigField("the file", "must hold an object")
    return ProfiledModel(directory.name, config, parse_config(values))


def config_of(spec: ModelSpec) -> dict[str, object]:
    """A config.json that `parse_config` reads as this spec."""
    config: dict[str, object] = {
        "architectures": [next(name for name, ours in SUPPORTED.items() if ours == spec.architecture)],
        "model_type": spec.architecture,
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.rms_norm_eps,
        "tie_word_embeddings": spec.tied_embeddings,
        "attention_bias": spec.o_bias,
        "mlp_bias": spec.mlp_bias,
        "hidden_act": "silu",
        "rope_theta": spec.rope.theta,
    }
    return config | _rope(spec) | _windows(spec)


def _rope(spec: ModelSpec) -> dict[str, object]:
    rope = spec.rope
    if rope.rope_type == "default":
        return {}
    values: dict[str, object] = {"rope_type": rope.rope_type, "factor": rope.factor}
    if rope.rope_type != "linear":
        values["original_max_position_embeddings"] = rope.original_max_positions
    if rope.rope_type == "llama3":
        values |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.rope_type == "yarn":
        values |= {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "attention_factor": rope.attention_factor,
            "truncate": rope.truncate,
        }
    return {"rope_scaling": values}


def _windows(spec: ModelSpec) -> dict[str, object]:
    window = next((window for window in spec.sliding_windows if window is not None), None)
    if spec.architecture == "mistral":
        return {"sliding_window": window}
    if window is None:
        return {}
    kinds = ["full_attention" if each is None else "sliding_attention" for each in spec.sliding_windows]
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds}
