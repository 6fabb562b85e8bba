"""Profiles of devices nobody measured, from their data sheets. Everything made here is marked as estimated.

A layer takes the longer of two times (the roofline): reading weights and KV cache at a share of the memory's peak
bandwidth, or its arithmetic at a share of the peak rate. Decode is bound by the first, long prompts by the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.catalog import DeviceSpec
from planner.memory import head_bytes, kv_bytes_per_token_layer, layer_weight_bytes
from planner.model_spec import ModelSpec
from planner.profile import (
    ClusterProfile,
    DecodePoint,
    DeviceProfile,
    HeadPoint,
    LinkProfile,
    PowerProfile,
    PrefillPoint,
    Timing,
)
from planner.workload import Workload

BANDWIDTH_SHARE = 0.92
"""Of peak bandwidth when weights are streamed: Llama 2 7B in fp32 on AGX Orin at 140.34 ms per token (EdgeShard,
arXiv 2405.14371, table IV) reads 188 of 204.8 GB/s."""
ARITHMETIC_SHARE = 0.5
"""Of peak TFLOPS in the matrix products of a prompt: what good kernels reach on prompts of some hundred tokens."""
STAGE_MS = 0.3
"""What a run costs beside its layers: unpacking, packing and the calls."""

_ROWS = (1, 2, 4, 8, 16, 32, 64)
_CONTEXTS = (0, 1024, 4096, 16384)
_TOKENS = (1, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class _Roofline:
    """One device and one kind of weights."""

    bytes_per_ms: float
    operations_per_ms: float

    def ms(self, size_bytes: float, operations: float) -> float:
        return max(size_bytes / self.bytes_per_ms, operations / self.operations_per_ms)


def estimated_profile(
    model: str,
    spec: ModelSpec,
    devices: Sequence[tuple[str, DeviceSpec]],
    links: Sequence[LinkProfile],
    workload: Workload,
) -> ClusterProfile:
    """A profile for `devices` by name, as in `catalog.parse_device_list`. Raises ValueError for a repeated name."""
    return ClusterProfile(
        model=model,
        spec=spec,
        quantization=workload.quantization,
        block_size=workload.block_size,
        boundary=workload.boundary,
        devices=tuple(estimated_device(name, device, spec, workload) for name, device in devices),
        links=tuple(links),
    )


def estimated_device(name: str, device: DeviceSpec, spec: ModelSpec, workload: Workload) -> DeviceProfile:
    """One device's part of `estimated_profile`."""
    tflops = device.fp32_tflops if workload.quantization == "fp32" else device.fp16_tflops
    roofline = _Roofline(
        bytes_per_ms=BANDWIDTH_SHARE * device.memory_gb_per_s * 1e6,
        operations_per_ms=ARITHMETIC_SHARE * tflops * 1e9,
    )
    weight_bytes = layer_weight_bytes(spec, workload.quantization, workload.block_size)
    kv_bytes = kv_bytes_per_token_layer(spec, 2 if workload.quantization == "fp16" else 4)
    qkv = spec.q_size + 2 * spec.kv_size
    operations = 2 * spec.hidden_size * (qkv + spec.q_size + 3 * spec.intermediate_size)
    output_bytes = head_bytes(spec, workload.quantization, workload.block_size)
    output_operations = 2 * spec.hidden_size * spec.vocab_size

    def decode_ms(rows: int, context: int) -> float:
        attention = 4 * spec.q_size * context
        return roofline.ms(weight_bytes + rows * context * kv_bytes, rows * (operations + attention))

    def prefill_ms(tokens: int) -> float:
        causal_attention = 2 * spec.q_size * tokens
        return roofline.ms(weight_bytes, tokens * (operations + causal_attention))

    return DeviceProfile(
        name=name,
        host=name,
        provider="estimate",
        memory_bytes=device.memory_bytes,
        decode=tuple(
            DecodePoint(rows=rows, context=context, layer=Timing(ms=decode_ms(rows, context)))
            for rows in _ROWS
            for context in _CONTEXTS
        ),
        prefill=tuple(PrefillPoint(tokens=tokens, layer=Timing(ms=prefill_ms(tokens))) for tokens in _TOKENS),
        head=tuple(
            HeadPoint(rows=rows, head=Timing(ms=roofline.ms(output_bytes, rows * output_operations))) for rows in _ROWS
        ),
        stage_ms=STAGE_MS,
        power=PowerProfile(idle_w=device.idle_w, decode_w=device.load_w, prefill_w=device.load_w, source="estimate"),
        estimated=True,
    )
