"""The kernels in NumPy: the same bits as csrc/, for machines without the extension and as the tests' oracle.

Every operation is a basic IEEE 754 one or works on bits, in the order of the C++ sources, which explain the methods:
csrc/convert.hpp (formats), csrc/crc32c.hpp. The random numbers of the damage are in `damage_twins`.
Arrays are checked here as csrc/bindings.cpp does it, so that both raise ValueError for the same mistakes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from agent.compute.conceal_twin import conceal
from agent.compute.damage_twins import Stream, philox, standard_normal

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Buffer = bytes | bytearray | memoryview | Bytes
UInt32 = NDArray[np.uint32]

HALF_MAX = 65504.0
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_QUIET_NAN = np.uint32(0x7FC00000)
_CASTAGNOLI = 0x82F63B78
_INT4_GROUP = 32
"""Elements of a row that share a scale; csrc/pack.hpp."""


class NumpyKernels:
    """What `_native.Kernels` does, method by method."""

    name = "numpy"

    def pack_fp16(self, hidden: Float32, payload: Bytes) -> int:
        _check_floats(hidden)
        halves = _checked_payload(payload, 2 * hidden.size).view(np.uint16)
        halves[:] = _to_half(hidden.reshape(-1))
        return _clipped(hidden)

    def pack_bf16(self, hidden: Float32, payload: Bytes) -> None:
        _check_floats(hidden)
        _checked_payload(payload, 2 * hidden.size).view(np.uint16)[:] = _to_brain(hidden.reshape(-1)) >> np.uint32(16)

    def pack_int8(self, hidden: Float32, payload: Bytes) -> None:
        _check_floats(hidden)
        width = hidden.shape[-1]
        rows = hidden.reshape(-1, width) if width else hidden.reshape(0, 0)
        out = _checked_payload(payload, rows.size + 4 * len(rows))
        largest = (rows.view(np.uint32) & _MAGNITUDE).max(axis=1, initial=np.uint32(0))
        largest[largest >= _INFINITY] = _QUIET_NAN
        scales = largest.view(np.float32) / np.float32(127)
        usable = (scales > 0)[:, None]
        quotients = np.divide(rows, scales[:, None], where=usable, out=np.zeros_like(rows))
        out[: rows.size].view(np.int8)[:] = np.clip(np.rint(quotients), -127, 127).reshape(-1)
        out[rows.size :] = scales.view(np.uint8)

    def unpack_fp16(self, payload: Buffer, hidden: Float32) -> None:
        _check_floats(hidden, writeable=True)
        halves = _read_payload(payload, 2 * hidden.size).view(np.uint16)
        hidden.reshape(-1)[:] = _from_half(halves)

    def unpack_bf16(self, payload: Buffer, hidden: Float32) -> None:
        _check_floats(hidden, writeable=True)
        brains = _read_payload(payload, 2 * hidden.size).view(np.uint16)
        np.left_shift(brains.astype(np.uint32), np.uint32(16), out=hidden.view(np.uint32).reshape(-1))

    def unpack_int8(self, payload: Buffer, hidden: Float32) -> None:
        _check_floats(hidden, writeable=True)
        width = hidden.shape[-1]
        rows = hidden.reshape(-1, width) if width else hidden.reshape(0, 0)
        data = _read_payload(payload, rows.size + 4 * len(rows))
        elements = data[: rows.size].view(np.int8).reshape(rows.shape).astype(np.float32)
        with np.errstate(all="ignore"):
            np.multiply(elements, data[rows.size :].copy().view(np.float32)[:, None], out=rows)

    def pack_int4(self, hidden: Float32, payload: Bytes) -> None:
        _check_floats(hidden)
        rows, width, padded = _int4_rows(hidden)
        out = _checked_payload(payload, int4_bytes(rows, width))
        values = np.zeros((rows, padded), np.float32)
        values[:, :width] = hidden.reshape(rows, width)
        groups = values.reshape(rows, padded // _INT4_GROUP, _INT4_GROUP)
        largest = (groups.view(np.uint32) & _MAGNITUDE).max(axis=2, initial=np.uint32(0))
        finite = largest < _INFINITY
        scales = np.where(
            finite,
            _to_half(np.where(finite, largest, np.uint32(0)).view(np.float32) / np.float32(7)),
            np.uint16(0x7E00),
        )
        divisors = _from_half(scales)[..., None]
        quotients = np.divide(groups, divisors, where=divisors > 0, out=np.zeros_like(groups))
        nibbles = np.clip(np.rint(quotients), -7, 7).astype(np.int8).reshape(rows, padded).view(np.uint8) & 0xF
        packed = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4)[:, : (width + 1) // 2]
        out[: packed.size] = packed.reshape(-1)
        out[packed.size :] = scales.reshape(-1).view(np.uint8)

    def unpack_int4(self, payload: Buffer, hidden: Float32) -> None:
        _check_floats(hidden, writeable=True)
        rows, width, padded = _int4_rows(hidden)
        data = _read_payload(payload, int4_bytes(rows, width))
        packed = data[: rows * ((width + 1) // 2)].reshape(rows, (width + 1) // 2)
        nibbles = np.stack([packed & 0xF, packed >> 4], axis=2).reshape(rows, 2 * packed.shape[1])[:, :width]
        elements = (nibbles.view(np.int8) ^ 8) - 8
        scales = _from_half(data[packed.size :].copy().view(np.uint16)).reshape(rows, padded // _INT4_GROUP)
        with np.errstate(all="ignore"):
            scaled = elements.astype(np.float32) * np.repeat(scales, _INT4_GROUP, axis=1)[:, :width]
            hidden.reshape(rows, width)[...] = scaled

    def round_fp16(self, hidden: Float32) -> int:
        _check_floats(hidden, writeable=True)
        clipped = _clipped(hidden)
        hidden[...] = _from_half(_to_half(hidden))
        return clipped

    def round_bf16(self, hidden: Float32) -> None:
        _check_floats(hidden, writeable=True)
        hidden.view(np.uint32)[...] = _to_brain(hidden) & np.uint32(0xFFFF0000)

    def erase(self, hidden: Float32, threshold: int, scale: float, *, seed: int, layer: int, position: int) -> None:
        tokens, width = _damage_shape(hidden, position)
        if threshold > 0xFFFFFFFF:
            hidden[...] = 0
            return
        shape = (tokens, -(-width // 8))
        drawn = philox(seed, layer, position, shape, Stream.ERASURE).view(np.uint16)[:, :width]
        upper = np.uint16(threshold >> 16)
        erased = drawn < upper
        if (tied := drawn == upper).any():
            lower = philox(seed, layer, position, shape, Stream.ERASURE_TIE).view(np.uint16)[:, :width]
            erased |= tied & (lower < np.uint16(threshold & 0xFFFF))
        if scale != 1.0:
            with np.errstate(all="ignore"):
                hidden *= np.float32(scale)
        hidden[erased] = 0

    def add_noise(self, hidden: Float32, sigma: float, *, seed: int, layer: int, position: int) -> None:
        tokens, width = _damage_shape(hidden, position)
        words = philox(seed, layer, position, (tokens, -(-width // 4)), Stream.NOISE)[:, :width]
        with np.errstate(all="ignore"):
            hidden += np.float32(sigma) * standard_normal(words).astype(np.float32)

    def conceal(self, hidden: Float32, lost: Mask, mean: Float32, spread: Float32, precision: Float32) -> None:
        _, width = _damage_shape(hidden, 0)
        if lost.dtype != np.bool_:
            raise ValueError(f"lost: dtype {lost.dtype}, bool expected")
        if not lost.flags.c_contiguous:
            raise ValueError("lost: a C-contiguous array expected")
        if lost.size != hidden.size:
            raise ValueError("lost: the shape of hidden expected")
        for name, array in (("mean", mean), ("spread", spread), ("precision", precision)):
            _check_floats(array, name)
        if mean.size != width or spread.size != width or precision.size != width * width:
            raise ValueError("precision: of the hidden size expected, and mean and spread too")
        for row, mask in zip(hidden, lost.reshape(hidden.shape), strict=True):
            conceal(row, mask, mean.reshape(-1), spread.reshape(-1), precision.reshape(width, width))

    def crc32c(self, data: Buffer, seed: int) -> int:
        table, crc, message = _crc_table(), seed ^ 0xFFFFFFFF, as_bytes(data, "data")
        lanes = len(message) // _CRC_LANE
        if lanes:
            crc = _crc_lanes(message[: lanes * _CRC_LANE].reshape(lanes, _CRC_LANE), crc)
        for byte in message[lanes * _CRC_LANE :].tolist():
            crc = crc >> 8 ^ int(table[(crc ^ byte) & 0xFF])
        return crc ^ 0xFFFFFFFF


def _clipped(values: Float32) -> int:
    magnitude = values.view(np.uint32) & _MAGNITUDE
    return int(np.count_nonzero((magnitude > np.uint32(0x477FE000)) & (magnitude <= _INFINITY)))


def _to_half(values: Float32) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    nan = (bits & _MAGNITUDE) > _INFINITY
    halves = np.clip(np.where(nan, np.float32(0), values), -HALF_MAX, HALF_MAX).astype(np.float16).view(np.uint16)
    sign, payload = bits >> np.uint32(16) & np.uint32(0x8000), bits >> np.uint32(13) & np.uint32(0x3FF)
    return np.where(nan, (sign | np.uint32(0x7E00) | payload).astype(np.uint16), halves)


def _from_half(halves: NDArray[np.uint16]) -> Float32:
    bits = halves.astype(np.uint32)
    nan = (bits & np.uint32(0x7FFF)) > np.uint32(0x7C00)
    quiet = (bits & np.uint32(0x8000)) << np.uint32(16) | _QUIET_NAN | (bits & np.uint32(0x3FF)) << np.uint32(13)
    numbers = np.where(nan, np.uint16(0), halves).view(np.float16).astype(np.float32)
    return np.where(nan, quiet, numbers.view(np.uint32)).view(np.float32)


def _to_brain(values: Float32) -> UInt32:
    """bf16 bits in the upper halves; the lower halves are to be dropped."""
    bits = values.view(np.uint32)
    nan = (bits & _MAGNITUDE) > _INFINITY
    rounded: UInt32 = np.where(nan, np.uint32(0), bits) + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))
    return np.where(nan, bits | np.uint32(0x00400000), rounded)


_CRC_LANE = 64
"""Bytes per lane: all lanes take a byte at a time together, then neighbours are joined pair by pair."""


@cache
def _crc_table() -> UInt32:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> np.uint32(1) ^ np.where(table & np.uint32(1), np.uint32(_CASTAGNOLI), np.uint32(0))
    return table


@cache
def _crc_zeros(size_bytes: int) -> UInt32:
    """Appending `size_bytes` (a power of two) zero bytes to a CRC, tabulated per byte of the CRC: [4, 256]."""
    if size_bytes == 1:
        crc = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
        moved: UInt32 = crc >> np.uint32(8) ^ _crc_table()[crc & np.uint32(0xFF)]
        return moved
    half = _crc_zeros(size_bytes // 2)
    return _append_zeros(half, half)


def _append_zeros(table: UInt32, crc: UInt32) -> UInt32:
    appended = np.zeros_like(crc)
    for k in range(4):
        appended ^= table[k][crc >> np.uint32(8 * k) & np.uint32(0xFF)]
    return appended


def _crc_lanes(lanes: Bytes, crc: int) -> int:
    """The inverted CRC of consecutive lanes [n, _CRC_LANE], starting from an inverted one."""
    table = _crc_table()
    sums = np.zeros(len(lanes), np.uint32)
    sums[0] = crc
    for column in lanes.T:
        sums = sums >> np.uint32(8) ^ table[(sums ^ column) & np.uint32(0xFF)]
    size_bytes = _CRC_LANE
    while len(sums) > 1:
        # An odd one out in front gets an empty neighbour: zeros before a message of CRC 0 change nothing.
        if len(sums) % 2:
            sums = np.concatenate([np.zeros(1, np.uint32), sums])
        sums = _append_zeros(_crc_zeros(size_bytes), sums[0::2]) ^ sums[1::2]
        size_bytes *= 2
    return int(sums[0])


def _check_floats(array: Float32, name: str = "hidden", *, writeable: bool = False) -> None:
    if array.dtype != np.float32:
        raise ValueError(f"{name}: dtype {array.dtype}, float32 expected")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: a C-contiguous array expected")
    if writeable and not array.flags.writeable:
        raise ValueError(f"{name}: a writeable array expected")
    if array.ndim < 1:
        raise ValueError(f"{name}: at least one dimension expected")


def _checked_payload(payload: Bytes, size_bytes: int) -> Bytes:
    if payload.dtype != np.uint8:
        raise ValueError(f"payload: dtype {payload.dtype}, uint8 expected")
    if not payload.flags.c_contiguous or not payload.flags.writeable:
        raise ValueError("payload: a writeable C-contiguous array expected")
    if payload.size != size_bytes:
        raise ValueError(f"payload: {payload.size} bytes, {size_bytes} expected")
    return payload.reshape(-1)


def _int4_rows(hidden: Float32) -> tuple[int, int, int]:
    """Rows, their width, and that in whole groups."""
    width = hidden.shape[-1]
    return hidden.size // width if width else 0, width, -(-width // _INT4_GROUP) * _INT4_GROUP


def int4_bytes(rows: int, width: int) -> int:
    """Bytes of int4's payload: whole bytes of elements per row, an fp16 scale per group."""
    return rows * ((width + 1) // 2 + 2 * -(-width // _INT4_GROUP))


def as_bytes(data: Buffer, name: str) -> Bytes:
    """Any contiguous buffer as an array of bytes, not a copy. Raises ValueError when it is none."""
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous:
            raise ValueError(f"{name}: a contiguous buffer expected")
        return data.reshape(-1).view(np.uint8)
    try:
        return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
    except (TypeError, ValueError, BufferError) as problem:
        raise ValueError(f"{name}: a contiguous buffer expected") from problem


def _read_payload(payload: Buffer, size_bytes: int) -> Bytes:
    data = as_bytes(payload, "payload")
    if data.size != size_bytes:
        raise ValueError(f"payload: {data.size} bytes, {size_bytes} expected")
    return data


def _damage_shape(hidden: Float32, position: int) -> tuple[int, int]:
    if hidden.ndim != 2:
        raise ValueError("hidden: shape [tokens, hidden size] expected")
    _check_floats(hidden, writeable=True)
    tokens, width = hidden.shape
    if position + tokens > 1 << 32:
        raise ValueError("position: beyond 2^32")
    return tokens, width
