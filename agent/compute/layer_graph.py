"""One small ONNX graph per block, and the recipe for each of its weights.

A block's graph is its layers one after the other: the same nodes whether a layer is alone or in a block of many, with
the residual rounded to the boundary type in between, so that cutting a block never changes a bit. Weights are only
declared here; `quantize.make_arrays` makes them from the checkpoint when the session is created.

Opset 21 and `com.microsoft`, the operators of onnxruntime-genai's own builder: ONNX Runtime 1.20 to 1.31.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from planner.model_spec import ModelSpec
from planner.types import BoundaryType, LayerRange, Quantization

MICROSOFT = "com.microsoft"
FP16_MAX = 65504.0

WeightForm = Literal["plain", "transposed", "quantized"]
WeightType = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class WeightRef:
    """How to make one weight of a graph: checkpoint tensors, stacked along their rows, then brought into `form`.

    `plain` keeps the checkpoint's layout, `transposed` makes [in, out], `quantized` makes `name.q` [N, blocks, bytes],
    `name.s` [N, blocks] and, unless symmetric, `name.z` [N, bytes].
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    """Shape of the stacked tensor in the checkpoint's layout: [out, in] for a matrix."""
    form: WeightForm
    dtype: WeightType
    bits: int = 0
    block_size: int = 0
    symmetric: bool = True


@dataclass(frozen=True, slots=True)
class ProviderFeatures:
    """What differs between the kernels of execution providers."""

    compute: WeightType
    """Type of activations inside a layer and of the KV pool; the residual is always fp32."""
    fused_qk_norm: bool = False
    """GroupQueryAttention takes the q/k norm weights itself."""
    window_excess: int = 0
    """How many tokens beyond `local_window_size` attention sees: see `provider_probe.window_excess`."""


CPU_FEATURES = ProviderFeatures(compute="fp32")
CUDA_FEATURES = ProviderFeatures(compute="fp16")


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """A model without weights, and the weights it asks for."""

    model: ModelProto
    weights: tuple[WeightRef, ...]
    counts_saturation: bool
    """Whether the graph has an output `saturated` [1]: residual elements clipped between its layers."""


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """What every graph of an executor has in common."""

    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    capacity: int
    """Positions of a KV slot: the context and one more."""
    features: ProviderFeatures = CPU_FEATURES

    @property
    def bits(self) -> int:
        """Bits of a quantized element, 0 for float weights."""
        return {"int4": 4, "int8": 8}.get(self.quantization, 0)

    @property
    def symmetric(self) -> bool:
        """int8 has no zero points; for int4 they are worth their 4 bits per block: docs/log.md, 2026-11-21."""
        return self.bits == 8


@dataclass(slots=True)
class _Writer:
    """Collects nodes, declared weights and constants of one graph."""

    options: GraphOptions
    epsilon: float
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    weights: dict[str, WeightRef] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)

    @property
    def compute(self) -> WeightType:
        return self.options.features.compute

    @property
    def element(self) -> int:
        return _element(self.compute)

    def op(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        names = list(inputs)
        while names[-1] == "":
            names.pop()
        self.nodes.append(
            helper.make_node(kind, names, list(outputs), name=f"{kind}.{outputs[0]}", domain=domain, **attributes)
        )
        return outputs[0]

    def declare(self, name: str, shape: Sequence[int], element: int) -> str:
        """An initializer whose bytes come at session creation."""
        tensor = TensorProto(name=name, dims=shape, data_type=element, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="attached")
        self.initializers[name] = tensor
        return name

    def constant(self, name: str, values: Sequence[float], element: int, shape: Sequence[int]) -> str:
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(name, element, shape, values)
        return name

    def vector(self, name: str, sources: Sequence[str], size: int) -> str:
        self.weights[name] = WeightRef(name, tuple(sources), (size,), "plain", self.compute)
        return self.declare(name, (size,), self.element)

    def linear(self, x: str, out: str, sources: Sequence[str], shape: tuple[int, int], bias: Sequence[str] = ()) -> str:
        """`out = x @ stack(sources).T + stack(bias)`; weight names are the checkpoint's, less `.weight`."""
        name = f"{out}.weight"
        rows, columns = shape
        bias_name = self.vector(f"{out}.bias", bias, rows) if bias else ""
        if not self.options.bits:
            self.weights[name] = WeightRef(name, tuple(sources), shape, "transposed", self.compute)
            self.declare(name, (columns, rows), self.element)
            product = self.op("MatMul", [x, name], [f"{out}.product" if bias else out])
            return self.op("Add", [product, bias_name], [out]) if bias else product
        bits, block_size = self.options.bits, self.options.block_size
        blocks = -(-columns // block_size)
        self.weights[name] = WeightRef(
            name, tuple(sources), shape, "quantized", self.compute, bits, block_size, self.options.symmetric
        )
        zeros = ""
        if not self.options.symmetric:
            zeros = self.declare(f"{name}.z", (rows, (blocks * bits + 7) // 8), TensorProto.UINT8)
        inputs = [
            x,
            self.declare(f"{name}.q", (rows, blocks, block_size * bits // 8), TensorProto.UINT8),
            self.declare(f"{name}.s", (rows, blocks), self.element),
            zeros,
            "",
            bias_name,
        ]
        attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block_size, "accuracy_level": 4}
        return self.op("MatMulNBits", inputs, [out], MICROSOFT, **attributes)

    def norm(self, x: str, out: str, source: str, size: int) -> str:
        """RMS norm of the fp32 residual (or of heads); the output has the compute type."""
        weight = self.vector(f"{out}.weight", [source], size)
        return self.op("SimplifiedLayerNormalization", [x, weight], [out], axis=-1, epsilon=self.epsilon, stash_type=1)

    def add_norm(self, x: str, y: str, out: str, source: str, size: int) -> tuple[str, str]:
        """The norm of `x + y`, and `x + y`: one node where residual and activations have one type."""
        if self.compute != "fp32":
            summed = self.op("Add", [x, self.widen(y)], [f"{out}.sum"])
            return self.norm(summed, out, source, size), summed
        weight = self.vector(f"{out}.weight", [source], size)
        outputs = [out, "", "", f"{out}.sum"]
        self.op("SkipSimplifiedLayerNormalization", [x, y, weight], outputs, MICROSOFT, epsilon=self.epsilon)
        return out, outputs[3]

    def widen(self, x: str) -> str:
        """The compute type to fp32, the type of the residual."""
        return x if self.compute == "fp32" else self.op("Cast", [x], [f"{x}.fp32"], to=TensorProto.FLOAT)

    def model(self, name: str) -> ModelProto:
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edgectl")


def build_block(spec: ModelSpec, layers: LayerRange, options: GraphOptions) -> BlockGraph:
    """The graph of `layers`: `hidden` [n, s, H] fp32 to `hidden_out`, with a KV pair per layer.

    Inputs besides: `seqlens_k` [n] (total length less one), `total_len` [1] (the largest total length), `past_k.i` and
    `past_v.i` [n, kv heads, capacity, head_dim], and the rotation tables `cos` and `sin` [capacity, rotary_dim / 2].
    The residual after the last layer is not rounded: the caller's kernel does it.
    """
    writer = _Writer(options, spec.rms_norm_eps)
    writer.inputs += [
        helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", "s", spec.hidden_size]),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["n"]),
        helper.make_tensor_value_info("total_len", TensorProto.INT32, [1]),
    ]
    writer.outputs.append(helper.make_tensor_value_info("hidden_out", TensorProto.FLOAT, ["n", "s", spec.hidden_size]))
    for table in ("cos", "sin"):
        shape = [options.capacity, spec.rotary_dim // 2]
        writer.inputs.append(helper.make_tensor_value_info(table, writer.element, shape))
    x = "hidden"
    clipped: list[str] = []
    for layer in layers:
        last = layer == layers.stop - 1
        summed = _write_layer(writer, spec, layer, x, "hidden_out" if last else f"sum.{layer}")
        x = summed if last else _write_rounding(writer, summed, options.boundary, clipped)
    if clipped:
        writer.op("Concat", clipped, ["saturated.each"], axis=0)
        writer.op("ReduceSum", ["saturated.each"], ["saturated"], keepdims=1)
        writer.outputs.append(helper.make_tensor_value_info("saturated", TensorProto.INT32, [1]))
    return BlockGraph(writer.model(f"layers {layers}"), tuple(writer.weights.values()), bool(clipped))


def build_head(spec: ModelSpec, options: GraphOptions) -> BlockGraph:
    """Final norm and output matrix: `hidden` [n, H] fp32 to `logits` [n, V] fp32."""
    writer = _Writer(options, spec.rms_norm_eps)
    writer.inputs.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", spec.hidden_size]))
    writer.outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", spec.vocab_size]))
    source = "model.embed_tokens.weight" if spec.tied_embeddings else "lm_head.weight"
    normed = writer.norm("hidden", "normed", "model.norm.weight", spec.hidden_size)
    out = "logits" if writer.compute == "fp32" else "logits.narrow"
    writer.linear(normed, out, [source], (spec.vocab_size, spec.hidden_size))
    if writer.compute != "fp32":
        writer.op("Cast", [out], ["logits"], to=TensorProto.FLOAT)
    return BlockGraph(writer.model("head"), tuple(writer.weights.values()), False)


def _write_layer(writer: _Writer, spec: ModelSpec, layer: int, x: str, out: str) -> str:
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


def _write_attention(writer: _Writer, spec: ModelSpec, layer: int, x: str) -> str:
    source = f"model.layers.{layer}.self_attn."
    weights = [f"{source}{part}_proj.weight" for part in "qkv"]
    bias = [f"{source}{part}_proj.bias" for part in "qkv"] if spec.qkv_bias else []
    sizes = [spec.q_size, spec.kv_size, spec.kv_size]
    query, key, value = writer.linear(x, f"{layer}.qkv", weights, (sum(sizes), spec.hidden_size), bias), "", ""
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
    return writer.op(
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


def _write_head_norm(writer: _Writer, spec: ModelSpec, x: str, source: str, heads: int) -> str:
    """RMS norm of every head: [n, s, heads * head_dim] seen as [n, s, heads, head_dim]."""
    split = writer.constant(f"heads.{heads}", [0, 0, heads, spec.head_dim], TensorProto.INT64, (4,))
    join = writer.constant(f"joined.{heads}", [0, 0, heads * spec.head_dim], TensorProto.INT64, (3,))
    writer.op("Reshape", [x, split], [f"{x}.heads"])
    normed = writer.norm(f"{x}.heads", f"{x}.norm", source, spec.head_dim)
    return writer.op("Reshape", [normed, join], [f"{x}.normed"])


def _write_mlp(writer: _Writer, spec: ModelSpec, layer: int, x: str) -> str:
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


def _write_rounding(writer: _Writer, x: str, boundary: BoundaryType, clipped: list[str]) -> str:
    """Round the residual as `kernels.round_to_boundary` does: fp16 saturates and is counted, bf16 is only rounded."""
    if boundary == "fp32":
        return x
    if boundary == "bf16":
        writer.op("Cast", [x], [f"{x}.narrow"], to=TensorProto.BFLOAT16)
        return writer.op("Cast", [f"{x}.narrow"], [f"{x}.rounded"], to=TensorProto.FLOAT)
    low = writer.constant("boundary.low", [-FP16_MAX], TensorProto.FLOAT, ())
    high = writer.constant("boundary.high", [FP16_MAX], TensorProto.FLOAT, ())
    writer.op("Abs", [x], [f"{x}.magnitude"])
    writer.op("Greater", [f"{x}.magnitude", high], [f"{x}.over"])
    writer.op("Cast", [f"{x}.over"], [f"{x}.over_each"], to=TensorProto.INT32)
    axes = writer.constant("axes", [0, 1, 2], TensorProto.INT64, (3,))
    one = writer.constant("one", [1], TensorProto.INT64, (1,))
    writer.op("ReduceSum", [f"{x}.over_each", axes], [f"{x}.over_sum"], keepdims=0)
    clipped.append(writer.op("Reshape", [f"{x}.over_sum", one], [f"{x}.over_count"]))
    writer.op("Clip", [x, low, high], [f"{x}.clipped"])
    writer.op("Cast", [f"{x}.clipped"], [f"{x}.narrow"], to=TensorProto.FLOAT16)
    return writer.op("Cast", [f"{x}.narrow"], [f"{x}.rounded"], to=TensorProto.FLOAT)


def _element(dtype: WeightType) -> int:
    return int(TensorProto.FLOAT if dtype == "fp32" else TensorProto.FLOAT16)
