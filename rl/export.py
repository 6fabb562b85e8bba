"""A trained policy as an ONNX file: the network written node by node, with its card in the metadata.

No exporter is involved: a policy is a chain of linear layers, and `onnx.helper` writes those in a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rl.dense import Dense
from rl.policy_card import INPUT, METADATA_KEY, OUTPUT, BadPolicy, PolicyCard, dump_card

_OPSET, _IR_VERSION = 17, 9
"""What ONNX Runtime 1.20 reads."""


def network_model(layers: Sequence[Dense], card: PolicyCard) -> ModelProto:
    """The ONNX model of a policy. Raises BadPolicy where layers, card and each other do not fit."""
    _require_fit(layers, card)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    at = INPUT
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        names = f"weight{index}", f"bias{index}"
        for name, values in zip(names, (layer.weight, layer.bias), strict=True):
            weights.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        out = OUTPUT if last else f"linear{index}"
        nodes.append(helper.make_node("Gemm", [at, *names], [out], transB=1))
        if layer.activation != "none":
            nodes.append(helper.make_node(layer.activation.capitalize(), [out], [f"active{index}"]))
            out = f"active{index}"
        at = out
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", len(card.observation)])]
    outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", len(card.moves)])]
    graph = helper.make_graph(nodes, "split_policy", inputs, outputs, weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="edgectl"
    )
    helper.set_model_props(model, {METADATA_KEY: dump_card(card.checked())})
    return model


def write_policy(path: Path, layers: Sequence[Dense], card: PolicyCard) -> None:
    """Writes the file, whole or not at all. Raises BadPolicy, OSError."""
    data = network_model(layers, card).SerializeToString()
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    beside.replace(path)


def _require_fit(layers: Sequence[Dense], card: PolicyCard) -> None:
    if not layers or layers[-1].activation != "none":
        raise BadPolicy("a policy's last layer gives scores, without an activation")
    size = len(card.observation)
    for index, layer in enumerate(layers):
        if layer.weight.shape != (len(layer.bias), size):
            raise BadPolicy(f"layer {index} is {layer.weight.shape}, ({len(layer.bias)}, {size}) fits")
        if not (np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()):
            raise BadPolicy(f"layer {index} holds weights that are not finite: training diverged")
        size = len(layer.bias)
    if size != len(card.moves):
        raise BadPolicy(f"the network gives {size} scores, its card has {len(card.moves)} moves")
