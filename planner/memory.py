"""The memory a part of a model takes on a device: one formula for everybody.

The planner places layers by it, and the agent refuses by it before it loads. Pure and standard library only.
Measured, resident after prefill on the CPU provider, 8 layers of 2048/5632 with the head and 4 slots of 1024 tokens:
int4 439 MiB by the formula and 439 in fact, fp32 1709 and 1677; without malloc_trim after loading up to 150 MiB more.
Not counted: while a weight is being made, its fp32 source lies beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.model_spec import ModelSpec
from planner.types import LayerRange, Quantization

BLOCK_OVERHEAD_BYTES = 10
"""What ONNX Runtime keeps per quantized block beside its elements: fp32 scale, fp32 block sum, zero point, padding.
Measured with MatMulNBits, accuracy level 4, 4096 x 4096: 13.1 MiB for int4 and 21.1 for int8 at block size 32."""

SESSION_BYTES = 256 << 10
"""Resident cost of one ONNX Runtime session with a layer's graph, without its weights; there is one per layer."""

WORKSPACE_CHUNK = 256
"""Prefill tokens per run the formula provides for; longer chunks buy nothing on the devices this is for."""

ATTENTION_SCRATCH_BYTES = 16 << 20
"""Attention's own scratch: 13 MiB measured for a prompt of 2048 tokens and 32 heads on ONNX Runtime 1.31."""

_ELEMENT_BITS: dict[Quantization, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class MemoryBreakdown:
    """Bytes a layer range takes on a device, by purpose. The embedding is not among them: see `memory_breakdown`."""

    layers: int
    head: int
    kv: int
    workspace: int

    @property
    def total(self) -> int:
        return self.layers + self.head + self.kv + self.workspace

    def __str__(self) -> str:
        """For error texts: `412 MiB: layers 300, head 0, KV cache 100, workspace 12`; every part is rounded up."""
        mib = [-(-part >> 20) for part in (self.total, self.layers, self.head, self.kv, self.workspace)]
        return "{} MiB: layers {}, head {}, KV cache {}, workspace {}".format(*mib)


def _matrix_bytes(rows: int, columns: int, quantization: Quantization, block_size: int) -> int:
    """Resident bytes of a [rows, columns] weight; int4 and int8 are cut along columns into blocks of `block_size`."""
    bits = _ELEMENT_BITS[quantization]
    if quantization in ("fp32", "fp16"):
        return rows * columns * bits // 8
    blocks = rows * -(-columns // block_size)
    return blocks * (block_size * bits // 8 + BLOCK_OVERHEAD_BYTES)


def layer_weight_bytes(spec: ModelSpec, quantization: Quantization, block_size: int) -> int:
    """Weights of one decoder layer as they lie in memory; norms and biases stay fp32."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    qkv = spec.q_size + 2 * spec.kv_size
    matrices = ((qkv, hidden), (hidden, spec.q_size), (2 * inner, hidden), (hidden, inner))
    vectors = 2 * hidden + 2 * spec.head_dim * spec.qk_norm
    vectors += qkv * spec.qkv_bias + hidden * spec.o_bias + (2 * inner + hidden) * spec.mlp_bias
    return sum(_matrix_bytes(*shape, quantization, block_size) for shape in matrices) + 4 * vectors


def head_bytes(spec: ModelSpec, quantization: Quantization, block_size: int) -> int:
    """Final norm and output matrix, quantized like the layers; tied or not, it is resident where it is used."""
    return _matrix_bytes(spec.vocab_size, spec.hidden_size, quantization, block_size) + 4 * spec.hidden_size


def kv_bytes_per_token_layer(spec: ModelSpec, element_bytes: int = 4) -> int:
    """Key and value of one token in one layer; fp32 on the CPU provider, `element_bytes=2` on CUDA."""
    return 2 * spec.kv_size * element_bytes


def workspace_bytes(spec: ModelSpec, chunk: int, context: int) -> int:
    """Activations of one layer at prefill (layers run one after another), rotary tables and attention scratch."""
    per_token = 5 * spec.hidden_size + 2 * (spec.q_size + 2 * spec.kv_size) + 3 * spec.intermediate_size
    rotary_tables = (context + 1) * spec.rotary_dim
    return 4 * (min(chunk, context) * per_token + rotary_tables) + ATTENTION_SCRATCH_BYTES


def memory_breakdown(
    spec: ModelSpec, layers: LayerRange, *, quantization: Quantization, block_size: int, slots: int, context: int
) -> MemoryBreakdown:
    """What a device needs to hold `layers` with a KV pool of `slots` slots of `context + 1` positions.

    The embedding counts zero: its rows are read through the checkpoint's memory map, a few KiB per token, and the
    kernel may drop those pages. The head counts where the last layer is, with one row of logits per slot.
    """
    # Residuals of every layer but the last are kept until what the boundary type clipped is counted.
    residuals = 4 * (len(layers) - 1) * min(WORKSPACE_CHUNK, context) * spec.hidden_size
    kv = len(layers) * slots * (context + 1) * kv_bytes_per_token_layer(spec, 2 if quantization == "fp16" else 4)
    workspace = workspace_bytes(spec, WORKSPACE_CHUNK, context) + residuals + len(layers) * SESSION_BYTES
    has_head = layers.stop == spec.num_layers
    return MemoryBreakdown(
        layers=len(layers) * layer_weight_bytes(spec, quantization, block_size),
        head=head_bytes(spec, quantization, block_size) if has_head else 0,
        kv=kv,
        workspace=workspace + (4 * slots * spec.vocab_size + SESSION_BYTES if has_head else 0),
    )


def memory_bytes(
    spec: ModelSpec, layers: LayerRange, *, quantization: Quantization, block_size: int, slots: int, context: int
) -> int:
    """Total of `memory_breakdown`: the planner places by it, the agent refuses by it before it loads."""
    return memory_breakdown(
        spec, layers, quantization=quantization, block_size=block_size, slots=slots, context=context
    ).total
