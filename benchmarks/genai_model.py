"""Writes the benchmark's model in onnxruntime-genai's format: our own layers between an embedding and a head.

The operators are those of its builder (12 nodes a layer, MatMulNBits accuracy level 4), the weights random int4.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from agent.compute.graph_writer import GraphOptions, WeightRef
from agent.compute.layer_graph import build_block, build_head
from agent.compute.rope import rotation_tables
from planner.model_spec import ModelSpec
from planner.types import LayerRange

CONTEXT = 512
DATA_FILE = "model.onnx.data"


def write_genai_model(directory: Path, spec: ModelSpec, block_size: int, threads: int) -> None:
    """`model.onnx`, its data and `genai_config.json`."""
    options = GraphOptions("int4", block_size, "fp32", CONTEXT)
    block = build_block(spec, LayerRange(0, spec.num_layers), options)
    head = build_head(spec, options)
    renamed = _renamed(spec.num_layers)
    nodes = [*_inputs(), *(_copy(node, renamed) for node in block.model.graph.node)]
    nodes += [_copy(node, {"hidden": "hidden_out"}) for node in head.model.graph.node]
    store = _Store(directory / DATA_FILE)
    store.put("embedding", np.random.default_rng(0).standard_normal((spec.vocab_size, spec.hidden_size), np.float32))
    for name, table in zip(("cos", "sin"), rotation_tables(spec, CONTEXT), strict=True):
        store.put(name, table)
    for weight in (*block.weights, *head.weights):
        _put_random(store, weight, block_size)
    store.file.close()
    constants = [
        tensor for part in (block, head) for tensor in part.model.graph.initializer if not tensor.external_data
    ]
    constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (("one", [1]), ("at", 1))]
    cache = ["batch_size", spec.num_kv_heads, "past_length", spec.head_dim]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", spec.vocab_size])]
    for old, new in renamed.items():
        if old.startswith(("past_", "present_")):
            (inputs if old.startswith("past_") else outputs).append(
                helper.make_tensor_value_info(new, TensorProto.FLOAT, cache)
            )
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, [*constants, *store.tensors])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    (directory / "genai_config.json").write_text(json.dumps(_config(spec, threads), indent=1))


class _Store:
    """Appends tensors to the external data file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.tensors: list[TensorProto] = []

    def put(self, name: str, array: np.ndarray) -> None:
        self.file.seek(-self.file.tell() % 4096, 1)
        tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", DATA_FILE), ("offset", self.file.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.file.write(np.ascontiguousarray(array).tobytes())
        self.tensors.append(tensor)


def _put_random(store: _Store, weight: WeightRef, block_size: int) -> None:
    """Random bytes: ONNX Runtime shares equal weights within a session, which would flatter whoever has them."""
    if weight.form == "plain":
        store.put(weight.name, np.ones(weight.shape, np.float32))
        return
    random = np.random.default_rng(len(store.tensors))
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    store.put(f"{weight.name}.q", random.integers(0, 256, (rows, blocks, block_size // 2), np.uint8))
    store.put(f"{weight.name}.s", np.full((rows, blocks), 0.005, np.float32))
    if not weight.symmetric:
        store.put(f"{weight.name}.z", random.integers(0, 256, (rows, (blocks + 1) // 2), np.uint8))


def _inputs() -> list[NodeProto]:
    """Embedding, and the two lengths from the attention mask, as in the builder's graphs."""
    return [
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"]),
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["mask_sum"], keepdims=0),
        helper.make_node("Sub", ["mask_sum", "one"], ["mask_less_one"]),
        helper.make_node("Cast", ["mask_less_one"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "at"], ["mask_length"], axis=0),
        helper.make_node("Cast", ["mask_length"], ["total_len"], to=TensorProto.INT32),
    ]


def _renamed(layers: int) -> dict[str, str]:
    kinds = {"past_k": "past_key_values.{}.key", "past_v": "past_key_values.{}.value"}
    kinds |= {"present_k": "present.{}.key", "present_v": "present.{}.value"}
    return {f"{kind}.{layer}": form.format(layer) for layer in range(layers) for kind, form in kinds.items()}


def _copy(node: NodeProto, renamed: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    for names in (copy.input, copy.output):
        names[:] = [renamed.get(name, name) for name in names]
    return copy


def _config(spec: ModelSpec, threads: int) -> dict[str, object]:
    decoder = {
        "session_options": {"intra_op_num_threads": threads, "provider_options": []},
        "filename": "model.onnx",
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": spec.num_kv_heads,
    }
    model = {"type": "llama", "vocab_size": spec.vocab_size, "context_length": CONTEXT, "decoder": decoder}
    # Ends are not looked for: the benchmark counts steps.
    model |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"model": model, "search": {"past_present_share_buffer": True, "max_length": CONTEXT, "do_sample": False}}
