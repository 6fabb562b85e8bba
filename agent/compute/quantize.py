"""Makes the arrays of a weight from the checkpoint: stacked, cast, transposed or quantized, one matrix at a time.

The quantizers are ONNX Runtime's own (`quantize_matmul_4bits`, `quantize_matmul_8bits`), called without a graph: what
they write is what the operator MatMulNBits reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.compute.graph_writer import FP16_MAX, WeightRef
from agent.compute.onnx_session import quantize_4bits, quantize_8bits
from agent.errors import BadCheckpoint

Array = NDArray[Any]
ReadTensor = Callable[[str], Array]
"""A checkpoint tensor by name: a view of the memory map in the checkpoint's own type."""


def make_arrays(weight: WeightRef, read: ReadTensor) -> dict[str, Array]:
    """The initializers of `weight` by name. Raises BadCheckpoint when the tensors do not stack to its shape."""
    parts = [read(source) for source in weight.sources]
    rows = sum(part.shape[0] for part in parts)
    if any(part.shape[1:] != weight.shape[1:] for part in parts) or rows != weight.shape[0]:
        shapes = ", ".join(f"{source} {part.shape}" for source, part in zip(weight.sources, parts, strict=True))
        raise BadCheckpoint(f"{shapes}: expected {weight.shape} in all, as config.json says")
    if weight.form == "quantized":
        return _quantized(weight, parts)
    dtype = np.float32 if weight.dtype == "fp32" else np.float16
    transposed = weight.form == "transposed"
    whole = np.empty(weight.shape[::-1] if transposed else weight.shape, dtype)
    row = 0
    for part in parts:
        target = whole[:, row : row + len(part)] if transposed else whole[row : row + len(part)]
        target[...] = _narrowed(part, dtype).T if transposed else _narrowed(part, dtype)
        row += len(part)
    return {weight.name: whole}


def quantize_matrix(
    matrix: Array, bits: int, block_size: int, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Quantize [N, K] in blocks of `block_size` along K.

    Returns values [N, blocks, block_size * bits / 8], scales [N, blocks] and zero points [N, bytes] (all of a symmetric
    quantization's are the middle of the range).
    """
    rows, columns = matrix.shape
    blocks = -(-columns // block_size)
    values = np.zeros((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros(rows * blocks, np.float32)
    zeros = np.zeros(rows * ((blocks * bits + 7) // 8), np.uint8)
    flipped = np.empty((columns, rows), np.float32)
    flipped[...] = matrix.T
    quantizer = quantize_4bits if bits == 4 else quantize_8bits
    quantizer(values, flipped, scales, zeros, block_size, rows, columns, symmetric)
    return values, scales.reshape(rows, blocks), zeros.reshape(rows, -1)


def _quantized(weight: WeightRef, parts: list[Array]) -> dict[str, Array]:
    """Blocks lie within a row, so every stacked tensor is quantized by itself: the peak is one tensor in fp32."""
    done = [quantize_matrix(part, weight.bits, weight.block_size, weight.symmetric) for part in parts]
    values, scales, zeros = (np.concatenate(arrays) for arrays in zip(*done, strict=True))
    arrays: dict[str, Array] = {
        f"{weight.name}.q": values,
        f"{weight.name}.s": scales if weight.dtype == "fp32" else _narrowed(scales, np.float16),
    }
    if not weight.symmetric:
        arrays[f"{weight.name}.z"] = zeros
    return arrays


def _narrowed(tensor: Array, dtype: type[np.float32] | type[np.float16]) -> Array:
    """`tensor` as `dtype`; what fp16 cannot hold becomes its largest value, not infinity."""
    if dtype is np.float16 and tensor.dtype != np.float16:
        return np.clip(tensor.astype(np.float32), -FP16_MAX, FP16_MAX).astype(np.float16)
    return tensor.astype(dtype, copy=False)
