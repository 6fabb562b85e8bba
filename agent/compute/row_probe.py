"""Finds out whether a quantized matrix gives a row the same bits alone as beside others.

ONNX Runtime's MatMulNBits takes rows in pairs on some processors, and a last odd row goes through a kernel of its own.
With AVX-512 VNNI that kernel adds up in another order for int4 in blocks of 64 and more, and int8 of 128 and more: a
session's tokens would depend on how many others are served. A batch padded to an even number of rows has no odd one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from agent.compute.graph_writer import GraphOptions, GraphWriter
from agent.compute.onnx_session import SessionSettings, open_session
from agent.compute.quantize import quantize_matrix

_BLOCKS, _OUTPUTS, _ROWS = 9, 64, 6


def needs_pairs(settings: SessionSettings, options: GraphOptions) -> bool:
    """Whether rows have to be computed in pairs for their bits not to depend on their number. Takes milliseconds."""
    if not options.bits:
        return False
    columns = _BLOCKS * options.block_size
    writer = GraphWriter(options, epsilon=0.0)
    writer.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns]))
    writer.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", _OUTPUTS]))
    writer.linear("x", "y", ["matrix"], (_OUTPUTS, columns))
    random = np.random.Generator(np.random.PCG64(0))
    matrix = random.standard_normal((_OUTPUTS, columns), dtype=np.float32)
    values, scales, zeros = quantize_matrix(matrix, options.bits, options.block_size, options.symmetric)
    arrays: dict[str, NDArray[Any]] = {"y.weight.q": values, "y.weight.s": scales, "y.weight.z": zeros}
    if options.symmetric:
        del arrays["y.weight.z"]
    session = open_session(writer.model("rows"), settings, [arrays])
    x = random.standard_normal((_ROWS, columns), dtype=np.float32)
    together = np.asarray(session.run(None, {"x": x})[0])
    alone = np.concatenate([np.asarray(session.run(None, {"x": row[None]})[0]) for row in x])
    return not np.array_equal(alone, together)
