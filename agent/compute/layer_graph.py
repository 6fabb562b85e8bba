"""One small ONNX graph per block.

A block's graph is its layers one after the other: the same nodes whether a layer is alone or in a block of many, with
the residual rounded to the boundary type in between, so that cutting a block never changes a bit. Weights are only
declared; `quantize.make_arrays` makes them from the checkpoint when the session is created.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, TensorProto, helper

from agent.compute.graph_writer import FP16_MAX, MICROSOFT, GraphOptions, GraphWriter, WeightRef
from planner.model_spec import ModelSpec
from planner.types import BoundaryType, LayerRange


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """A model without weights, and the weights it asks for."""

    model: ModelProto
    weights: tuple[WeightRef, ...]
    counts_saturation: bool = False
    """Whether the graph has an output `saturated` [1]: residual elements clipped between its layers."""
    residuals: tuple[str, ...] = ()
    """Outputs [n, s, H]: the residuals before they are rounded, for the caller to count what was clipped."""


def build_block(spec: ModelSpec, layers: LayerRange, options: GraphOptions) -> BlockGraph:
    """The graph of `layers`: `hidden` [n, s, H] fp32 to `hidden_out`, with a KV pair per layer.

    Inputs besides: `seqlens_k` [n] (total length less one), `total_len` [1] (the largest total length), `past_k.i` and
    `past_v.i` [n, kv heads, capacity, head_dim], and the rotation tables `cos` and `sin` [capacity, rotary_dim / 2].
    The residual after the last layer is not rounded: the caller's kernel does it.

    With the feature `pairs` the hidden states have more rows or tokens than are real; attention sees the real ones
    only. `real` [2] says how many rows and tokens these are, `pads` [6] what is to be added again, as Pad wants it.
    """
    writer = GraphWriter(options, spec.rms_norm_eps)
    hidden_shape: list[str | int | None] = ["n", "s", spec.hidden_size]
    if options.features.pairs:
        hidden_shape[:2] = ["n.even", "s.even"]
        writer.inputs.append(helper.make_tensor_value_info("real", TensorProto.INT64, [2]))
        writer.inputs.append(helper.make_tensor_value_info("pads", TensorProto.INT64, [6]))
    writer.inputs += [
        helper.make_tensor_value_info("hidden", TensorProto.FLOAT, hidden_shape),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["n"]),
        helper.make_tensor_value_info("total_len", TensorProto.INT32, [1]),
    ]
    writer.outputs.append(helper.make_tensor_value_info("hidden_out", TensorProto.FLOAT, hidden_shape))
    for table in ("cos", "sin"):
        writer.inputs.append(
            helper.make_tensor_value_info(table, writer.element, [options.capacity, spec.rotary_dim // 2])
        )
    x = "hidden"
    residuals: list[str] = []
    for layer in layers:
        last = layer == layers.stop - 1
        summed = _write_layer(writer, spec, layer, x, "hidden_out" if last else f"sum.{layer}")
        x = summed if last else _write_rounding(writer, summed, options.boundary, residuals)
    weights = tuple(writer.weights.values())
    if residuals and options.features.counts_on_host:
        writer.outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, hidden_shape) for name in residuals]
        return BlockGraph(writer.model(f"layers {layers}"), weights, residuals=tuple(residuals))
    if residuals:
        _write_count(writer, residuals)
    return BlockGraph(writer.model(f"layers {layers}"), weights, counts_saturation=bool(residuals))


def build_head(spec: ModelSpec, options: GraphOptions) -> BlockGraph:
    """Final norm and output matrix: `hidden` [n, H] fp32 to `logits` [n, V] fp32."""
    writer = GraphWriter(options, spec.rms_norm_eps)
    writer.inputs.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", spec.hidden_size]))
    writer.outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", spec.vocab_size]))
    source = "model.embed_tokens.weight" if spec.tied_embeddings else "lm_head.weight"
    normed = writer.norm("hidden", "normed", "model.norm.weight", spec.hidden_size)
    out = "logits" if writer.compute == "fp32" else "logits.narrow"
    writer.linear(normed, out, [source], (spec.vocab_size, spec.hidden_size))
    if writer.compute != "fp32":
        writer.op("Cast", [out], ["logits"], to=TensorProto.FLOAT)
    return BlockGraph(writer.model("head"), tuple(writer.weights.values()))


def _write_layer(writer: GraphWriter, spec: ModelSpec, layer: int, x: str, out: str) -> str:
    """Residual `x` to residual `out`, not rounded."""
    source, hidden = f"model.layers.{layer}.", spec.hidden_size
    normed = writer.norm(x, f"{layer}.attention_in", f"{source}input_layernorm.weight", hidden)
    attended = _write_attention(writer, spec, layer, normed)
    bias = [f"{source}self_attn.o_proj.bias"] if spec.o_bias else []
    weight = [f"{source}self_attn.o_proj.weight"]
    projected = writer.linear(attended, f"{layer}.o", weight, (hidden, spec.q_size), bias)
    norm_weight = f"{source}post_attention_layernorm.weight"
    normed, x = writer.add_norm(x, projected, f"{layer}.mlp_in", norm_weight, hidden)
    return writer.op("Add", [x, writer.widen(_write_mlp(writer, spec, layer, normed))], [out])


def _write_attention(writer: GraphWriter, spec: ModelSpec, layer: int, x: str) -> str:
    source = f"model.layers.{layer}.self_attn."
    weights = [f"{source}{part}_proj.weight" for part in "qkv"]
    bias = [f"{source}{part}_proj.bias" for part in "qkv"] if spec.qkv_bias else []
    sizes = [spec.q_size, spec.kv_size, spec.kv_size]
    query, key, value = writer.linear(x, f"{layer}.qkv", weights, (sum(sizes), spec.hidden_size), bias), "", ""
    pairs = writer.options.features.pairs
    if pairs:
        starts = writer.constant("real.starts", [0, 0], TensorProto.INT64, (2,))
        axes = writer.constant("real.axes", [0, 1], TensorProto.INT64, (2,))
        query = writer.op("Slice", [query, starts, "real", axes], [f"{layer}.qkv.real"])
    norm_weights: list[str] = []
    if spec.qk_norm:
        writer.constant("qkv.sizes", sizes, TensorProto.INT64, (3,))
        parts = [f"{layer}.{part}" for part in "qkv"]
        writer.op("Split", [query, "qkv.sizes"], parts, axis=-1)
        query, key, value = parts
        norms = [f"{source}q_norm.weight", f"{source}k_norm.weight"]
        if writer.options.features.fused_qk_norm:
            names = (f"{layer}.q_norm.weight", f"{layer}.k_norm.weight")
            norm_weights = [writer.vector(n, [w], spec.head_dim) for n, w in zip(names, norms, strict=True)]
        else:
            query = _write_head_norm(writer, spec, query, norms[0], spec.num_heads)
            key = _write_head_norm(writer, spec, key, norms[1], spec.num_kv_heads)
    cache_shape: list[str | int | None] = ["n", spec.num_kv_heads, "capacity", spec.head_dim]
    for part in "kv":
        writer.inputs.append(helper.make_tensor_value_info(f"past_{part}.{layer}", writer.element, cache_shape))
        writer.outputs.append(helper.make_tensor_value_info(f"present_{part}.{layer}", writer.element, cache_shape))
    inputs = [query, key, value, f"past_k.{layer}", f"past_v.{layer}", "seqlens_k", "total_len", "cos", "sin"]
    if norm_weights:
        inputs += ["", "", "", "", "", *norm_weights]
    outputs = [f"{layer}.attended", f"present_k.{layer}", f"present_v.{layer}"]
    window = spec.sliding_windows[layer]
    attributes: dict[str, Any] = {"qk_norm_epsilon": spec.rms_norm_eps} if norm_weights else {}
    attended = writer.op(
        "GroupQueryAttention",
        inputs,
        outputs,
        MICROSOFT,
        num_heads=spec.num_heads,
        kv_num_heads=spec.num_kv_heads,
        do_rotary=1,
        scale=spec.head_dim**-0.5,
        local_window_size=-1 if window is None else window - writer.options.features.window_excess,
        **attributes,
    )
    return writer.op("Pad", [attended, "pads"], [f"{attended}.padded"]) if pairs else attended


def _write_head_norm(writer: GraphWriter, spec: ModelSpec, x: str, source: str, heads: int) -> str:
    """RMS norm of every head: [n, s, heads * head_dim] seen as [n, s, heads, head_dim]."""
    split = writer.constant(f"heads.{heads}", [0, 0, heads, spec.head_dim], TensorProto.INT64, (4,))
    join = writer.constant(f"joined.{heads}", [0, 0, heads * spec.head_dim], TensorProto.INT64, (3,))
    writer.op("Reshape", [x, split], [f"{x}.heads"])
    normed = writer.norm(f"{x}.heads", f"{x}.norm", source, spec.head_dim)
    return writer.op("Reshape", [normed, join], [f"{x}.normed"])


def _write_mlp(writer: GraphWriter, spec: ModelSpec, layer: int, x: str) -> str:
    """`down(silu(gate(x)) * up(x))`."""
    source, hidden, inner = f"model.layers.{layer}.mlp.", spec.hidden_size, spec.intermediate_size

    def linear(out: str, parts: Sequence[str], x: str, shape: tuple[int, int]) -> str:
        bias = [f"{source}{part}_proj.bias" for part in parts] if spec.mlp_bias else []
        return writer.linear(x, f"{layer}.{out}", [f"{source}{part}_proj.weight" for part in parts], shape, bias)

    both = linear("gate_up", ["gate", "up"], x, (2 * inner, hidden))
    gate, up = f"{layer}.gate", f"{layer}.up"
    writer.op("Split", [both], [gate, up], axis=-1, num_outputs=2)
    sigmoid = writer.op("Sigmoid", [gate], [f"{layer}.sigmoid"])
    silu = writer.op("Mul", [gate, sigmoid], [f"{layer}.silu"])
    gated = writer.op("Mul", [silu, up], [f"{layer}.gated"])
    return linear("down", ["down"], gated, (hidden, inner))


def _write_rounding(writer: GraphWriter, x: str, boundary: BoundaryType, residuals: list[str]) -> str:
    """Round the residual as `kernels.round_to_boundary` does: fp16 saturates and is counted, bf16 is only rounded."""
    if boundary == "fp32":
        return x
    if boundary == "bf16":
        writer.op("Cast", [x], [f"{x}.narrow"], to=TensorProto.BFLOAT16)
        return writer.op("Cast", [f"{x}.narrow"], [f"{x}.rounded"], to=TensorProto.FLOAT)
    low = writer.constant("boundary.low", [-FP16_MAX], TensorProto.FLOAT, ())
    high = writer.constant("boundary.high", [FP16_MAX], TensorProto.FLOAT, ())
    residuals.append(x)
    writer.op("Clip", [x, low, high], [f"{x}.clipped"])
    writer.op("Cast", [f"{x}.clipped"], [f"{x}.narrow"], to=TensorProto.FLOAT16)
    return writer.op("Cast", [f"{x}.narrow"], [f"{x}.rounded"], to=TensorProto.FLOAT)


def _write_count(writer: GraphWriter, residuals: list[str]) -> None:
    """Count the clipped elements of all residuals at once: five small nodes per layer would cost more than a norm."""
    writer.op("Concat", residuals, ["residuals"], axis=0)
    writer.op("Abs", ["residuals"], ["residuals.magnitude"])
    writer.op("Greater", ["residuals.magnitude", "boundary.high"], ["residuals.over"])
    writer.op("Cast", ["residuals.over"], ["residuals.each"], to=TensorProto.INT32)
    shape = writer.constant("flat", [-1], TensorProto.INT64, (1,))
    writer.op("Reshape", ["residuals.each", shape], ["residuals.flat"])
    writer.op("ReduceSum", ["residuals.flat"], ["saturated"], keepdims=1)
    writer.outputs.append(helper.make_tensor_value_info("saturated", TensorProto.INT32, [1]))
