"""Rotary tables against transformers' own rotary embedding and against a direct rotation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.compute.rope import inverse_frequencies, rotation_tables
from planner.model_spec import ModelSpec, RopeSpec, parse_config

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
ROPES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": YARN,
    "yarn untruncated": {**YARN, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707},
}


def spec_with(rope: dict[str, Any] | None) -> ModelSpec:
    return parse_config({**CONFIG, "rope_scaling": rope})


@pytest.mark.parametrize("name", ROPES)
def test_as_transformers_computes_them(name: str) -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    rope = ROPES[name]
    config = llama.LlamaConfig(**{**CONFIG, "rope_parameters": {"rope_theta": 500000.0, **(rope or {})}})
    theirs = llama.LlamaRotaryEmbedding(config)
    spec = spec_with(rope)

    ours_frequencies, theirs_frequencies = inverse_frequencies(spec.rope, spec.head_dim), theirs.inv_freq.numpy()
    np.testing.assert_allclose(ours_frequencies, theirs_frequencies, rtol=1e-6)
    positions = torch.arange(4096)[None]
    cos, sin = rotation_tables(spec, 4096)
    half = spec.head_dim // 2
    for ours, table in zip((cos, sin), theirs(torch.zeros(1), positions), strict=True):
        expected = table[0].numpy()
        np.testing.assert_array_equal(expected[:, :half], expected[:, half:])
        # The angle may differ by what the frequencies' last bits make of the position, and by its own rounding.
        per_position = np.abs(ours_frequencies - theirs_frequencies) + 1.2e-7 * theirs_frequencies
        allowed = 3e-7 + spec.rope.attention_factor * np.outer(np.arange(4096), per_position)
        assert (np.abs(ours - expected[:, :half]) <= allowed).all()


@pytest.mark.parametrize("name", ROPES)
def test_tables_are_what_attention_expects(name: str) -> None:
    spec = spec_with(ROPES[name])
    cos, sin = rotation_tables(spec, 17)
    for table in (cos, sin):
        assert table.shape == (17, spec.rotary_dim // 2)
        assert table.dtype == np.float32
        assert table.flags.c_contiguous
    np.testing.assert_allclose(cos**2 + sin**2, spec.rope.attention_factor**2, rtol=1e-6)
    np.testing.assert_array_equal(sin[0], 0)
    # A longer table begins with the shorter one: the context length changes no token.
    np.testing.assert_array_equal(rotation_tables(spec, 40)[0][:17], cos)


def test_frequencies_fall_from_one() -> None:
    frequencies = inverse_frequencies(RopeSpec(theta=10000.0), 64)
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(10000.0 ** (-62 / 64))
    assert (np.diff(frequencies) < 0).all()


def test_a_narrower_rotation_has_fewer_pairs() -> None:
    assert inverse_frequencies(RopeSpec(partial_rotary_factor=0.5), 64).shape == (16,)
