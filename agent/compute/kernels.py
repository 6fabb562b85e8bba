"""Hidden states to and from bytes, their damage, and checksums: the one door to the native extension.

Every function runs on the best kernels this CPU has, or on the NumPy twins, with the same bits from all of them.
Environment, read once at import: EDGE_NATIVE=off uses the twins; EDGE_FORCE_KERNEL=scalar|avx2|avx512|neon|numpy pins
one set. Tests and benchmarks pass `using=implementations()[name]`.

Arrays are C-contiguous fp32; ValueError names the array that is not, or has the wrong size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np

from agent.compute.kernel_twins import Buffer, Bytes, Float32, Mask, NumpyKernels, as_bytes, int4_bytes
from agent.errors import ConfigError
from planner.types import BoundaryType, Codec

_TWO_32 = 4294967296.0


class Implementation(Protocol):
    """One set of kernels: `_native.Kernels` for an instruction set, or `NumpyKernels`. Meanings: csrc/bindings.cpp."""

    @property
    def name(self) -> str: ...
    def pack_fp16(self, hidden: Float32, payload: Bytes) -> int: ...
    def pack_bf16(self, hidden: Float32, payload: Bytes) -> None: ...
    def pack_int8(self, hidden: Float32, payload: Bytes) -> None: ...
    def unpack_fp16(self, payload: Buffer, hidden: Float32) -> None: ...
    def unpack_bf16(self, payload: Buffer, hidden: Float32) -> None: ...
    def unpack_int8(self, payload: Buffer, hidden: Float32) -> None: ...
    def pack_int4(self, hidden: Float32, payload: Bytes) -> None: ...
    def unpack_int4(self, payload: Buffer, hidden: Float32) -> None: ...
    def round_fp16(self, hidden: Float32) -> int: ...
    def round_bf16(self, hidden: Float32) -> None: ...
    def erase(self, hidden: Float32, threshold: int, scale: float, *, seed: int, layer: int, position: int) -> None: ...
    def add_noise(self, hidden: Float32, sigma: float, *, seed: int, layer: int, position: int) -> None: ...
    def conceal(self, hidden: Float32, lost: Mask, mean: Float32, spread: Float32, precision: Float32) -> None: ...
    def crc32c(self, data: Buffer, seed: int) -> int: ...


def _runnable(environment: Mapping[str, str]) -> dict[str, Implementation]:
    found: dict[str, Implementation] = {}
    if environment.get("EDGE_NATIVE") != "off":
        try:
            # A missing extension is a choice (EDGE_NATIVE=off at build); one that fails to load is an error to see.
            import agent.compute._native as native
        except ModuleNotFoundError:
            pass
        else:
            found.update((name, native.Kernels(name)) for name in native.available())
    twins = NumpyKernels()
    return {**found, twins.name: twins}


def _choose(found: Mapping[str, Implementation], environment: Mapping[str, str]) -> Implementation:
    forced = environment.get("EDGE_FORCE_KERNEL")
    if not forced:
        return next(iter(found.values()))
    if forced not in found:
        raise ConfigError(f"EDGE_FORCE_KERNEL={forced}: this machine can run {', '.join(found)}")
    return found[forced]


_FOUND = MappingProxyType(_runnable(os.environ))
_ACTIVE = _choose(_FOUND, os.environ)


def implementations() -> Mapping[str, Implementation]:
    """Everything this machine can run by name, best first, the twins (`numpy`) last."""
    return _FOUND


def available() -> tuple[str, ...]:
    """Names of what this machine can run, best first."""
    return tuple(_FOUND)


def active() -> str:
    """Name of what the functions below run on."""
    return _ACTIVE.name


def pack(hidden: Float32, codec: Codec, out: Bytes | None = None, *, using: Implementation = _ACTIVE) -> Bytes:
    """Hidden states [..., H] to exactly the bytes of the wire (`codec.payload_bytes`), into `out` when given.

    fp16 saturates at ±65504; a row with a NaN or an infinity comes out of int8 as NaN throughout, a group of 32 out of
    int4.
    """
    return pack_counted(hidden, codec, out, using=using)[0]


def pack_counted(
    hidden: Float32, codec: Codec, out: Bytes | None = None, *, using: Implementation = _ACTIVE
) -> tuple[Bytes, int]:
    """`pack`, and the number of elements that fp16 clipped: none after `round_to_boundary(hidden, "fp16")`."""
    if codec == "fp16":
        payload = np.empty(2 * hidden.size, np.uint8) if out is None else out
        return payload, using.pack_fp16(hidden, payload)
    if codec == "bf16":
        payload = np.empty(2 * hidden.size, np.uint8) if out is None else out
        using.pack_bf16(hidden, payload)
    elif codec == "int8":
        rows = hidden.size // hidden.shape[-1] if hidden.size else 0
        payload = np.empty(hidden.size + 4 * rows, np.uint8) if out is None else out
        using.pack_int8(hidden, payload)
    elif codec == "int4":
        width = hidden.shape[-1]
        payload = np.empty(int4_bytes(hidden.size // width if width else 0, width), np.uint8) if out is None else out
        using.pack_int4(hidden, payload)
    elif codec == "fp32":
        if hidden.dtype != np.float32 or not hidden.flags.c_contiguous:
            raise ValueError(f"hidden: a C-contiguous float32 array expected, not {hidden.dtype}")
        payload = np.empty(4 * hidden.size, np.uint8) if out is None else out
        if payload.size != 4 * hidden.size:
            raise ValueError(f"payload: {payload.size} bytes, {4 * hidden.size} expected")
        payload[:] = hidden.reshape(-1).view(np.uint8)
    else:
        raise ValueError(f"codec {codec!r}: fp32, fp16, bf16, int8 or int4 expected")
    return payload, 0


def unpack(
    payload: Buffer,
    codec: Codec,
    shape: tuple[int, ...],
    out: Float32 | None = None,
    *,
    using: Implementation = _ACTIVE,
) -> Float32:
    """Bytes of the wire to hidden states of `shape` [n, s, H], into `out` when given. Raises ValueError on a length
    that is not the one codec and shape give."""
    hidden = np.empty(shape, np.float32) if out is None else out
    if hidden.shape != shape:
        raise ValueError(f"out: shape {hidden.shape}, {shape} expected")
    if codec == "fp16":
        using.unpack_fp16(payload, hidden)
    elif codec == "bf16":
        using.unpack_bf16(payload, hidden)
    elif codec == "int8":
        using.unpack_int8(payload, hidden)
    elif codec == "int4":
        using.unpack_int4(payload, hidden)
    elif codec == "fp32":
        data = as_bytes(payload, "payload")
        if data.size != hidden.nbytes:
            raise ValueError(f"payload: {data.size} bytes, {hidden.nbytes} expected")
        hidden[...] = data.view(np.float32).reshape(shape)
    else:
        raise ValueError(f"codec {codec!r}: fp32, fp16, bf16, int8 or int4 expected")
    return hidden


def round_to_boundary(hidden: Float32, boundary: BoundaryType, *, using: Implementation = _ACTIVE) -> int:
    """Round hidden states in place to what the boundary type can hold, bit for bit as pack and unpack would.

    Returns how many elements were clipped to ±65504 (fp16 only).
    """
    if boundary == "fp16":
        return using.round_fp16(hidden)
    if boundary == "bf16":
        using.round_bf16(hidden)
    elif boundary != "fp32":
        raise ValueError(f"boundary type {boundary!r}: fp32, fp16 or bf16 expected")
    return 0


def erase(
    hidden: Float32,
    p: float,
    seed: int,
    layer: int,
    position: int,
    *,
    rescale: bool = False,
    using: Implementation = _ACTIVE,
) -> None:
    """Zero each element of [tokens, H] with probability `p`, in place; `rescale` multiplies the others by 1/(1-p).

    Token t is at `position + t` of its session; `layer` is the boundary (layers passed). The mask is a function of
    (seed, layer, position, element) alone, `p` counts in steps of 2^-32.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p: {p}, a probability expected")
    _check_place(seed, layer, position)
    scale = 1.0 / (1.0 - p) if rescale and p < 1.0 else 1.0
    using.erase(hidden, int(p * _TWO_32 + 0.5), scale, seed=seed, layer=layer, position=position)


def add_noise(
    hidden: Float32, sigma: float, seed: int, layer: int, position: int, *, using: Implementation = _ACTIVE
) -> None:
    """Add Gaussian noise of standard deviation `sigma` to [tokens, H], in place; arguments as in `erase`."""
    if not 0.0 <= sigma < float(np.finfo(np.float32).max):
        raise ValueError(f"sigma: {sigma}, a finite number not below zero expected")
    _check_place(seed, layer, position)
    using.add_noise(hidden, sigma, seed=seed, layer=layer, position=position)


def conceal(
    hidden: Float32,
    lost: Mask,
    mean: Float32,
    spread: Float32,
    precision: Float32,
    *,
    using: Implementation = _ACTIVE,
) -> None:
    """Replace the `lost` elements of hidden states [tokens, H] by their best linear estimate from the others, in place.

    `mean` [H]; `spread` [H], 1/sqrt(P_ii) of the inverse covariance P; `precision` [H, H], P_ij spread_i spread_j. By
    conjugate gradients to one part in a thousand (csrc/conceal.hpp); a token of which nothing came is the mean.
    """
    using.conceal(hidden, lost, mean, spread, precision)


def crc32c(data: Buffer, seed: int = 0, *, using: Implementation = _ACTIVE) -> int:
    """CRC-32C (RFC 3720 B.4) of any contiguous buffer; `crc32c(b, crc32c(a))` is that of a followed by b."""
    return using.crc32c(data, seed)


def _check_place(seed: int, layer: int, position: int) -> None:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: {seed}, 64 bits expected")
    if not 0 <= layer < 1 << 32 or not 0 <= position < 1 << 32:
        raise ValueError(f"layer {layer}, position {position}: 32 bits expected")
