from __future__ import annotations

import dataclasses
from collections import Counter

import onnx
import pytest

from agent.compute.graph_writer import CUDA_FEATURES, GraphOptions
from agent.compute.layer_graph import BlockGraph, build_block, build_head
from planner.memory import layer_weight_bytes
from planner.model_spec import ModelSpec
from planner.types import BoundaryType, LayerRange, Quantization
from tests.fakes.random_weights import SMALL

QWEN3 = dataclasses.replace(SMALL, architecture="qwen3", qk_norm=True)
BIASED = dataclasses.replace(SMALL, qkv_bias=True, o_bias=True, mlp_bias=True)


def options(quantization: Quantization = "int4", boundary: BoundaryType = "fp16") -> GraphOptions:
    return GraphOptions(quantization, 32, boundary, capacity=33)


def kinds(graph: BlockGraph) -> Counter[str]:
    return Counter(node.op_type for node in graph.model.graph.node)


@pytest.mark.parametrize("spec", [SMALL, QWEN3, BIASED], ids=lambda spec: spec.architecture)
@pytest.mark.parametrize("quantization", ["fp32", "int8", "int4"])
def test_weights_are_the_tensors_of_the_range_and_no_others(spec: ModelSpec, quantization: Quantization) -> None:
    graph = build_block(spec, LayerRange(1, 3), options(quantization))
    sources = [source for weight in graph.weights for source in weight.sources]
    assert len(sources) == len(set(sources))
    assert {source.split(".")[2] for source in sources} == {"1", "2"}
    per_layer = 9 + 2 * spec.qk_norm + 3 * spec.qkv_bias + spec.o_bias + 3 * spec.mlp_bias
    assert len(sources) == 2 * per_layer
    declared = {tensor.name for tensor in graph.model.graph.initializer if tensor.external_data}
    names = {weight.name for weight in graph.weights}
    assert {name for name in names if name in declared or f"{name}.q" in declared} == names


def test_weights_weigh_what_the_planner_counts() -> None:
    graph = build_block(BIASED, LayerRange(0, 1), options("fp32"))
    elements = sum(4 * _product(weight.shape) for weight in graph.weights)
    assert elements == layer_weight_bytes(BIASED, "fp32", 32)


@pytest.mark.parametrize(("boundary", "casts", "counted"), [("fp32", 0, False), ("bf16", 4, False), ("fp16", 4, True)])
def test_residual_is_rounded_between_layers_only(boundary: BoundaryType, casts: int, counted: bool) -> None:
    graph = build_block(SMALL, LayerRange(0, 3), options(boundary=boundary))
    assert kinds(graph)["Cast"] == casts
    assert graph.residuals == (("sum.0", "sum.1") if counted else ())
    assert set(graph.residuals) <= {output.name for output in graph.model.graph.output}
    on_device = dataclasses.replace(options(boundary=boundary), features=CUDA_FEATURES)
    counting = build_block(SMALL, LayerRange(0, 3), on_device)
    assert counting.counts_saturation == counted
    assert ("saturated" in {output.name for output in counting.model.graph.output}) == counted
    assert not counting.residuals
    assert kinds(build_block(SMALL, LayerRange(1, 2), options(boundary=boundary)))["Cast"] == 0


def test_node_counts_of_a_layer_stay_few() -> None:
    """The operators of onnxruntime-genai's builder: more of them would cost time on every token."""
    assert kinds(build_block(SMALL, LayerRange(0, 1), options())) == {
        "SimplifiedLayerNormalization": 1,
        "SkipSimplifiedLayerNormalization": 1,
        "MatMulNBits": 4,
        "GroupQueryAttention": 1,
        "Split": 1,
        "Sigmoid": 1,
        "Mul": 2,
        "Add": 1,
    }


def test_windows_are_per_layer_and_less_the_excess() -> None:
    spec = dataclasses.replace(SMALL, sliding_windows=(None, 7, None, 9))
    wide = dataclasses.replace(options(), features=dataclasses.replace(CUDA_FEATURES, window_excess=1))
    for built, expected in ((options(), [-1, 7, -1, 9]), (wide, [-1, 6, -1, 8])):
        nodes = build_block(spec, LayerRange(0, 4), built).model.graph.node
        attention = [node for node in nodes if node.op_type == "GroupQueryAttention"]
        windows = [a.i for node in attention for a in node.attribute if a.name == "local_window_size"]
        assert windows == expected


@pytest.mark.parametrize("tied", [False, True])
def test_head_reads_norm_and_output_matrix(tied: bool) -> None:
    graph = build_head(dataclasses.replace(SMALL, tied_embeddings=tied), options())
    matrix = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert [weight.sources for weight in graph.weights] == [("model.norm.weight",), (matrix,)]


def test_device_graph_keeps_the_residual_in_fp32() -> None:
    cuda = dataclasses.replace(options("fp16"), features=CUDA_FEATURES)
    for graph in (build_block(QWEN3, LayerRange(0, 2), cuda), build_head(QWEN3, cuda)):
        inferred = onnx.shape_inference.infer_shapes(graph.model)
        types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.input}
        types |= {value.name: value.type.tensor_type.elem_type for value in inferred.graph.output}
        halves = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16}
        assert all(name.startswith(("past_", "present_", "cos", "sin")) for name in halves)
        assert {weight.dtype for weight in graph.weights} == {"fp16"}


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
