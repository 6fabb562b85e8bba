"""Writes one ONNX graph: nodes, constants, and weights that are declared here and made at session creation.

Opset 21 and `com.microsoft`, the operators of onnxruntime-genai's own builder: ONNX Runtime 1.20 to 1.31.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from planner.types import BoundaryType, Quantization

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
    counts_on_host: bool = False
    """Residuals are given out and our kernel counts what was clipped; elsewhere they would have to be copied."""
    pairs: bool = False
    """Matrices are given an even number of rows, for a last odd one is summed otherwise: see `row_probe`."""


CPU_FEATURES = ProviderFeatures(compute="fp32", counts_on_host=True)
CUDA_FEATURES = ProviderFeatures(compute="fp16")


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
class GraphWriter:
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


def _element(dtype: WeightType) -> int:
    return int(TensorProto.FLOAT if dtype == "fp32" else TensorProto.FLOAT16)
