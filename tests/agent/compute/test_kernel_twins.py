"""The twins against definitions that are not ours: NumPy's and ml_dtypes' conversions, and a CRC bit by bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.kernel_twins import NumpyKernels, as_bytes

TWINS = NumpyKernels()
ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)


def packed_halves(values: np.ndarray) -> np.ndarray:
    payload = np.empty(2 * values.size, np.uint8)
    TWINS.pack_fp16(values, payload)
    return payload.view(np.uint16)


def test_every_half_survives_unpack_and_pack() -> None:
    values = np.empty(ALL_HALVES.size, np.float32)
    TWINS.unpack_fp16(ALL_HALVES.view(np.uint8), values)
    expected = ALL_HALVES.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(values, expected)
    again = packed_halves(values)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(again[finite], ALL_HALVES[finite])
    np.testing.assert_array_equal(again[np.isposinf(expected)], [0x7BFF])
    # NaNs stay NaNs, quiet ones to the bit.
    np.testing.assert_array_equal(again[np.isnan(expected)], ALL_HALVES[np.isnan(expected)] | 0x0200)


def test_halfway_values_go_to_the_even_half() -> None:
    halves = np.arange(0x7BFF, dtype=np.uint16)
    low, high = halves.view(np.float16).astype(np.float64), (halves + 1).view(np.float16).astype(np.float64)
    middle = ((low + high) / 2).astype(np.float32)
    np.testing.assert_array_equal(packed_halves(middle), halves + (halves & 1))
    np.testing.assert_array_equal(packed_halves(np.nextafter(middle, np.float32(0))), halves)
    np.testing.assert_array_equal(packed_halves(np.nextafter(middle, np.float32(np.inf))), halves + 1)


def test_half_saturates_and_counts() -> None:
    values = np.array([65504, 65505, 65519.996, 65520, -1e30, np.inf, -np.inf, np.nan], np.float32)
    payload = np.empty(16, np.uint8)
    assert TWINS.pack_fp16(values, payload) == 6
    np.testing.assert_array_equal(
        payload.view(np.float16), np.array([1, 1, 1, 1, -1, 1, -1, np.nan], np.float16) * np.float16(65504)
    )


@given(st.binary(min_size=4, max_size=400).map(lambda data: data[: len(data) // 4 * 4]))
def test_brain_floats_are_those_of_ml_dtypes(data: bytes) -> None:
    values = np.frombuffer(data, np.float32)
    payload = np.empty(2 * values.size, np.uint8)
    TWINS.pack_bf16(values, payload)
    numbers = ~np.isnan(values)
    expected = np.where(numbers, values, 0).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(payload.view(np.uint16)[numbers], expected.view(np.uint16)[numbers])
    back = np.empty_like(values)
    TWINS.unpack_bf16(payload, back)
    np.testing.assert_array_equal(np.isnan(back), ~numbers)


@given(st.integers(1, 4), st.integers(1, 50), st.integers(0, 2**32), st.floats(1e-30, 1e30))
def test_int8_is_off_by_half_a_step_at_most(rows: int, width: int, seed: int, size: float) -> None:
    values = (np.random.default_rng(seed).standard_normal((rows, width)) * size).astype(np.float32)
    payload = np.empty(values.size + 4 * rows, np.uint8)
    TWINS.pack_int8(values, payload)
    back = np.empty_like(values)
    TWINS.unpack_int8(payload, back)
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - values) <= step * (0.5 + 1e-4)).all()
    np.testing.assert_array_equal(payload[values.size :].view(np.float32), step[:, 0])


def test_int8_rows_without_a_scale() -> None:
    rows = np.array([[0, -0.0, 0], [1e-45, 0, 0], [1, np.nan, 2], [np.inf, 1, 2]], np.float32)
    payload = np.empty(12 + 16, np.uint8)
    TWINS.pack_int8(rows, payload)
    back = np.empty_like(rows)
    TWINS.unpack_int8(payload, back)
    np.testing.assert_array_equal(back[:2], 0)
    assert np.isnan(back[2:]).all()


def crc_bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@settings(deadline=None)
@given(st.binary(max_size=700), st.integers(0, 700))
def test_crc_is_the_polynomials_and_chains(data: bytes, cut: int) -> None:
    assert TWINS.crc32c(data, 0) == crc_bit_by_bit(data)
    assert TWINS.crc32c(data[cut:], TWINS.crc32c(data[:cut], 0)) == crc_bit_by_bit(data)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc_of_rfc_3720(data: bytes, crc: int) -> None:
    assert TWINS.crc32c(data, 0) == crc


def test_as_bytes_takes_any_contiguous_buffer() -> None:
    floats = np.arange(6, dtype=np.float32).reshape(2, 3)
    for buffer in (floats, memoryview(floats), floats.tobytes(), bytearray(floats.tobytes())):
        np.testing.assert_array_equal(as_bytes(buffer, "data"), floats.reshape(-1).view(np.uint8))
    assert as_bytes(b"", "data").size == 0
    for buffer in (floats[:, 1:], memoryview(bytes(8))[::2]):
        with pytest.raises(ValueError, match="data: a contiguous buffer"):
            as_bytes(buffer, "data")
