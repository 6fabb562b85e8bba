"""The memory formula against counts made another way, and against what ONNX Runtime was measured to keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory import (
    MemoryBreakdown,
    head_bytes,
    kv_bytes_per_token_layer,
    layer_weight_bytes,
    memory_breakdown,
    memory_bytes,
    workspace_bytes,
)
from planner.model_spec import ModelSpec, RopeSpec
from planner.types import LayerRange

MIB = 1 << 20

LLAMA_3_8B = ModelSpec(
    architecture="llama",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_positions=8192,
    rms_norm_eps=1e-5,
    rope=RopeSpec(theta=500000.0),
    tied_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_windows=(None,) * 32,
)


def test_fp32_weights_are_the_parameters_times_four() -> None:
    whole = 32 * layer_weight_bytes(LLAMA_3_8B, "fp32", 32) + head_bytes(LLAMA_3_8B, "fp32", 32)
    # 8,030,261,248 parameters are published; the embedding is not resident.
    assert whole == 4 * (8_030_261_248 - 128256 * 4096)


def test_biases_and_head_norms_are_counted() -> None:
    plain = layer_weight_bytes(LLAMA_3_8B, "int4", 32)
    qwen3 = replace(LLAMA_3_8B, qk_norm=True)
    assert layer_weight_bytes(qwen3, "int4", 32) - plain == 4 * 2 * 128
    biased = replace(LLAMA_3_8B, qkv_bias=True, o_bias=True, mlp_bias=True)
    expected = 4 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)
    assert layer_weight_bytes(biased, "int4", 32) - plain == expected


@pytest.mark.parametrize(
    ("quantization", "block_size", "measured_mib"),
    [("int4", 32, 13.11), ("int4", 128, 9.13), ("int8", 32, 21.11), ("int8", 128, 17.13)],
)
def test_quantized_matrices_take_what_onnx_runtime_keeps(
    quantization: str, block_size: int, measured_mib: float
) -> None:
    """The measurement is of one 4096 x 4096 matrix; o_proj is one, and the rest of the layer has 12 times its size."""
    spec = replace(LLAMA_3_8B, num_kv_heads=32, intermediate_size=4096)
    norms = 4 * 2 * 4096
    of_one = (layer_weight_bytes(spec, quantization, block_size) - norms) / 7 / MIB  # type: ignore[arg-type]
    assert measured_mib * 0.99 <= of_one <= measured_mib * 1.03


def test_kv_cache_of_llama_3() -> None:
    assert kv_bytes_per_token_layer(LLAMA_3_8B) == 8 << 10
    assert kv_bytes_per_token_layer(LLAMA_3_8B, element_bytes=2) == 4 << 10
    layers = LayerRange(8, 16)
    breakdown = memory_breakdown(LLAMA_3_8B, layers, quantization="int4", block_size=32, slots=3, context=2047)
    assert breakdown.kv == 8 * 3 * 2048 * (8 << 10)
    assert breakdown.head == 0


def test_the_head_counts_where_the_last_layer_is() -> None:
    sizes = {
        layers: memory_breakdown(LLAMA_3_8B, layers, quantization="int8", block_size=64, slots=1, context=100)
        for layers in (LayerRange(30, 31), LayerRange(31, 32))
    }
    inner, last = sizes.values()
    assert last.head == head_bytes(LLAMA_3_8B, "int8", 64)
    assert (inner.head, inner.layers, inner.kv) == (0, last.layers, last.kv)
    tied = replace(LLAMA_3_8B, tied_embeddings=True)
    assert head_bytes(tied, "int8", 64) == last.head


def test_breakdown_reads_well_and_rounds_up() -> None:
    breakdown = MemoryBreakdown(layers=300 * MIB, head=0, kv=100 * MIB, workspace=11 * MIB + 1)
    assert str(breakdown) == "412 MiB: layers 300, head 0, KV cache 100, workspace 12"


@given(
    start=st.integers(0, 30),
    length=st.integers(1, 2),
    quantization=st.sampled_from(["fp32", "fp16", "int8", "int4"]),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    slots=st.integers(1, 16),
    context=st.integers(2, 8192),
)
def test_more_of_anything_takes_more(
    *, start: int, length: int, quantization: str, block_size: int, slots: int, context: int
) -> None:
    def size(layers: LayerRange, more_slots: int = 0, more_context: int = 0) -> int:
        return memory_bytes(
            LLAMA_3_8B,
            layers,
            quantization=quantization,  # type: ignore[arg-type]
            block_size=block_size,
            slots=slots + more_slots,
            context=context + more_context,
        )

    layers = LayerRange(start, min(start + length, 32))
    base = size(layers)
    assert base < size(layers, more_slots=1)
    assert base < size(layers, more_context=1)
    assert layers.stop == 32 or base < size(LayerRange(start, layers.stop + 1))
    assert workspace_bytes(LLAMA_3_8B, 256, context) < base
