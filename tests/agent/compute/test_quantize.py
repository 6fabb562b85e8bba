from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from agent.compute.graph_writer import WeightRef
from agent.compute.quantize import make_arrays, quantize_matrix
from agent.errors import BadCheckpoint


def dequantized(values: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any], bits: int, columns: int) -> Any:
    """The MatMulNBits layout read back by its definition: low nibble first, one zero point per block."""
    rows, blocks, _ = values.shape
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1)
        zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)[:, :blocks]
    numbers = values.reshape(rows, blocks, -1).astype(np.float32) - zeros.reshape(rows, blocks, 1)
    return (numbers * scales[..., None]).reshape(rows, -1)[:, :columns]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("columns", [128, 352])
def test_quantized_values_are_half_a_step_away(bits: int, symmetric: bool, block_size: int, columns: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((24, columns), dtype=np.float32)
    values, scales, zeros = quantize_matrix(matrix, bits, block_size, symmetric)
    if symmetric:
        zeros = np.full_like(zeros, 0x88 if bits == 4 else 0x80)
    error = np.abs(dequantized(values, scales, zeros, bits, columns) - matrix)
    step = np.abs(np.repeat(scales, block_size, axis=1)[:, :columns])
    # The zero point is a whole number, so the ends of an asymmetric range may lie a step outside.
    assert (error <= step * 1.01).all()
    assert error.mean() <= 0.3 * step.mean()


def test_stacked_parts_are_quantized_as_if_alone() -> None:
    random = np.random.default_rng(1)
    tensors = {name: random.standard_normal((rows, 64), dtype=np.float32) for name, rows in (("q", 6), ("k", 4))}
    together = make_arrays(weight(("q", "k"), (10, 64), bits=4), tensors.__getitem__)
    for name, start in (("q", 0), ("k", 6)):
        alone = make_arrays(weight((name,), tensors[name].shape, bits=4), tensors.__getitem__)
        for key, array in alone.items():
            np.testing.assert_array_equal(together[key][start : start + len(array)], array)


@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_transposed_and_plain_keep_every_value(source: type) -> None:
    matrix = np.random.default_rng(2).standard_normal((3, 5)).astype(source)
    made = make_arrays(weight(("m", "m"), (6, 5), form="transposed"), lambda name: matrix)
    np.testing.assert_array_equal(made["w"], np.concatenate([matrix, matrix]).astype(np.float32).T)
    assert made["w"].flags.c_contiguous
    plain = make_arrays(weight(("m",), (3, 5), form="plain"), lambda name: matrix)
    np.testing.assert_array_equal(plain["w"], matrix.astype(np.float32))


def test_fp16_saturates() -> None:
    vector = np.array([1e6, -1e6, 2.0], ml_dtypes.bfloat16)
    made = make_arrays(weight(("v",), (3,), form="plain", dtype="fp16"), lambda name: vector)
    np.testing.assert_array_equal(made["w"], np.array([65504, -65504, 2], np.float16))


@pytest.mark.parametrize("shapes", [{"a": (4, 8), "b": (4, 8)}, {"a": (4, 9), "b": (2, 8)}])
def test_wrong_shapes_name_the_tensors(shapes: Mapping[str, tuple[int, int]]) -> None:
    with pytest.raises(BadCheckpoint, match=r"a \(4, [89]\), b .*expected \(6, 8\)"):
        make_arrays(weight(("a", "b"), (6, 8), bits=4), lambda name: np.zeros(shapes[name], np.float32))


def weight(sources: tuple[str, ...], shape: tuple[int, ...], *, bits: int = 0, **changes: Any) -> WeightRef:
    form = changes.pop("form", "quantized")
    dtype = changes.pop("dtype", "fp32")
    return WeightRef("w", sources, shape, form, dtype, bits, 32 if bits else 0, symmetric=False)
