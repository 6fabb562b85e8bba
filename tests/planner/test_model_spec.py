"""config.json in its many forms: what is read, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadConfigField, UnsupportedModel
from planner.model_spec import SUPPORTED, ModelSpec, RopeSpec, parse_config

LLAMA_3_1: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def of(architecture: str, **changes: Any) -> dict[str, Any]:
    """A small config of `architecture`; a change to `...` removes the field."""
    config: dict[str, Any] = {
        "architectures": [next(name for name, ours in SUPPORTED.items() if ours == architecture)],
        "model_type": architecture,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 512,
        **changes,
    }
    return {name: value for name, value in config.items() if value is not ...}


def test_llama_3_1_as_published() -> None:
    spec = parse_config(LLAMA_3_1)
    assert spec == ModelSpec(
        architecture="llama",
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_positions=131072,
        rms_norm_eps=1e-5,
        rope=RopeSpec(
            theta=500000.0,
            rope_type="llama3",
            factor=8.0,
            original_max_positions=8192,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
        tied_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=(None,) * 32,
    )
    assert (spec.q_size, spec.kv_size, spec.rotary_dim) == (4096, 1024, 128)


def test_transformers_4_and_5_forms_agree() -> None:
    modern = {name: value for name, value in LLAMA_3_1.items() if name not in ("rope_scaling", "rope_theta")}
    modern["rope_parameters"] = {**LLAMA_3_1["rope_scaling"], "rope_theta": 500000.0}
    modern["dtype"] = modern.pop("torch_dtype")
    assert parse_config(modern) == parse_config(LLAMA_3_1)


def test_the_bundled_model_is_read() -> None:
    path = Path(__file__).parents[2] / "examples" / "models" / "wiki-32l" / "config.json"
    spec = parse_config(json.loads(path.read_text()))
    assert (spec.num_layers, spec.hidden_size, spec.head_dim, spec.tied_embeddings) == (32, 128, 32, True)


@pytest.mark.parametrize("architecture", SUPPORTED.values())
def test_what_transformers_writes_is_read(architecture: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture]
    written = getattr(transformers, f"{kind}Config")(num_hidden_layers=40)
    config = json.loads(written.to_json_string(use_diff=False))
    spec = parse_config({**config, "architectures": [f"{kind}ForCausalLM"]})
    assert spec.architecture == architecture
    assert spec.head_dim == (getattr(written, "head_dim", None) or written.hidden_size // written.num_attention_heads)
    assert spec.num_kv_heads == written.num_key_value_heads
    assert spec.max_positions == written.max_position_embeddings
    assert set(spec.sliding_windows) == ({4096} if architecture == "mistral" else {None})


def test_architectures_differ_in_bias_and_norm() -> None:
    traits = {
        name: (spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.qk_norm)
        for name in SUPPORTED.values()
        for spec in [parse_config(of(name, attention_bias=True, mlp_bias=True))]
    }
    assert traits == {
        "llama": (True, True, True, False),
        "mistral": (False, False, False, False),
        "qwen2": (True, False, False, False),
        "qwen3": (True, True, False, True),
    }
    assert not parse_config(of("qwen3")).qkv_bias
    assert parse_config(of("qwen3")).head_dim == 128
    assert parse_config(of("qwen2")).head_dim == 16


def test_model_type_alone_names_the_architecture() -> None:
    assert parse_config(of("qwen3", architectures=...)).architecture == "qwen3"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (4096,) * 4),
        ({"sliding_window": 128}, (128,) * 4),
        ({"sliding_window": None}, (None,) * 4),
        ({"sliding_window": 128, "layer_types": ["sliding_attention"] * 4}, (128,) * 4),
    ],
)
def test_mistral_slides_in_every_layer_or_none(changes: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    assert parse_config(of("mistral", **changes)).sliding_windows == expected


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sliding_window": 64}, (None,) * 4),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}, (None, None, None, 64)),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, (64,) * 4),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, (None,) * 4),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 64, None, 64),
        ),
    ],
)
def test_qwen_slides_where_told(architecture: str, changes: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    assert parse_config(of(architecture, **changes)).sliding_windows == expected


def test_yarn_attention_factor_and_positions() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    spec = parse_config(of("qwen2", rope_scaling=yarn))
    assert spec.rope.attention_factor == pytest.approx(0.1 * math.log(4.0) + 1)
    assert spec.max_positions == 2048
    given_factor = parse_config(of("qwen2", rope_scaling={**yarn, "attention_factor": 1.25}))
    assert given_factor.rope.attention_factor == 1.25
    both = parse_config(of("qwen2", rope_scaling={**yarn, "mscale": 0.707, "mscale_all_dim": 0.707}))
    assert both.rope.attention_factor == 1.0
    inferred = parse_config(of("qwen2", max_position_embeddings=2048, rope_scaling={**yarn, "factor": None}))
    assert (inferred.rope.factor, inferred.max_positions) == (4.0, 2048)


def test_linear_scaling_with_the_old_key() -> None:
    rope = parse_config(of("llama", rope_scaling={"type": "linear", "factor": 2}, rope_theta=5000)).rope
    assert rope == RopeSpec(theta=5000.0, rope_type="linear", factor=2.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", ...),
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", 1 << 40),
        ("hidden_size", 66),
        ("num_hidden_layers", 5000),
        ("num_attention_heads", 3),
        ("head_dim", 17),
        ("vocab_size", None),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", math.nan),
        ("rms_norm_eps", math.inf),
        ("tie_word_embeddings", "yes"),
        ("attention_bias", 1),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("model_type", "mistral"),
        ("rope_theta", -1.0),
        ("rope_scaling", "llama3"),
        ("quantization_config", "gptq"),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(BadConfigField, match=field) as refused:
        parse_config(of("llama", **{field: value}))
    assert refused.value.name == field


@pytest.mark.parametrize(
    ("rope", "field"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "high_freq_factor",
        ),
        ({"rope_type": "yarn", "factor": "4"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 0}, "truncate"),
    ],
)
def test_a_bad_rope_field_is_named_with_its_place(rope: dict[str, Any], field: str) -> None:
    with pytest.raises(BadConfigField) as refused:
        parse_config(of("llama", rope_parameters=rope))
    assert refused.value.name == f"rope_parameters.{field}"


def test_only_llama_may_leave_out_key_value_heads() -> None:
    assert parse_config(of("llama", num_key_value_heads=...)).num_kv_heads == 4
    assert parse_config(of("qwen2", num_key_value_heads=None)).num_kv_heads == 4
    with pytest.raises(BadConfigField, match="num_key_value_heads is missing"):
        parse_config(of("mistral", num_key_value_heads=...))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM.*LlamaForCausalLM.*Qwen3ForCausalLM"),
        ({"architectures": ..., "model_type": "gpt2"}, "gpt2.*LlamaForCausalLM"),
        ({"architectures": ..., "model_type": ...}, "None.*LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config.*gptq.*int4"),
        ({"quantization_config": {"bits": 4}}, "unknown method"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic.*llama3, yarn"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "by layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_what_we_would_compute_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        parse_config(of("llama", **changes))


def test_layer_types_that_do_not_add_up_are_refused() -> None:
    alternating = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(UnsupportedModel, match="alternate"):
        parse_config(of("mistral", layer_types=alternating))
    with pytest.raises(BadConfigField, match="use_sliding_window is off"):
        parse_config(of("qwen3", layer_types=alternating))
    with pytest.raises(BadConfigField, match="4 names"):
        parse_config(of("qwen3", layer_types=["full_attention"]))
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        parse_config(of("qwen3", layer_types=["linear_attention"] * 4))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
FIELDS = sorted({*LLAMA_3_1, "rope_parameters", "sliding_window", "layer_types", "head_dim", "quantization_config"})
ROPE_TYPES = st.sampled_from(["default", "linear", "llama3", "yarn"])
ROPE = st.dictionaries(st.sampled_from(sorted(LLAMA_3_1["rope_scaling"])), JSON, max_size=5).flatmap(
    lambda fields: ROPE_TYPES.map(lambda kind: {**fields, "rope_type": kind})
)


@given(
    architecture=st.sampled_from(sorted(SUPPORTED.values())),
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    rope=st.none() | ROPE,
)
def test_any_config_is_read_or_refused(architecture: str, changes: dict[str, Any], rope: dict[str, Any] | None) -> None:
    try:
        spec = parse_config(of(architecture, **{"rope_parameters": rope, **changes}))
    except (BadConfigField, UnsupportedModel):
        return
    assert len(spec.sliding_windows) == spec.num_layers
    assert spec.num_heads % spec.num_kv_heads == 0
    assert spec.rotary_dim % 2 == 0
