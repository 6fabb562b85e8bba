"""The random numbers behind erasure and noise, in NumPy: csrc/philox.hpp and csrc/normal.hpp, bit for bit.

Erasure draws 16 bits per element, noise 32, each from its own stream; which element gets which bits is laid down in
csrc/philox.hpp. The normal numbers take basic IEEE 754 operations on doubles only, in a fixed order.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Float64 = NDArray[np.float64]

_LOW_32 = np.uint64(0xFFFFFFFF)


class Stream(IntEnum):
    """Fourth word of the counter; no two uses of random numbers share one."""

    ERASURE = 1
    ERASURE_TIE = 2
    NOISE = 3


# Wichura's AS 241 (PPND16), highest power first, as in csrc/normal.hpp: numerators and denominators of the centre
# (|u - 1/2| <= 0.425) and of the tails.
_CENTRE_ABOVE = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0,
)  # fmt: skip
_CENTRE_BELOW = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
)  # fmt: skip
_TAIL_ABOVE = (
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
    3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0,
)  # fmt: skip
_TAIL_BELOW = (
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0,
)  # fmt: skip


def philox(seed: int, layer: int, position: int, shape: tuple[int, int], stream: Stream) -> UInt32:
    """Philox4x32-10 (Salmon et al., SC 2011) words of `shape` (tokens, blocks): [tokens, 4 * blocks].

    The first token is at `position`; the key is `seed`, the counter (block, position, layer, stream).
    """
    tokens, blocks = shape
    counter = [
        np.broadcast_to(np.arange(blocks, dtype=np.uint64), shape),
        np.broadcast_to(np.arange(position, position + tokens, dtype=np.uint64)[:, None], shape),
        np.full(shape, layer, np.uint64),
        np.full(shape, stream, np.uint64),
    ]
    return np.stack(philox_rounds(counter, seed), axis=-1).reshape(tokens, 4 * blocks)


def philox_rounds(counter: list[UInt64], seed: int) -> list[UInt32]:
    """The ten rounds on four words of equal shape, each in 0 .. 2^32 - 1; the key is `seed`, low word first."""
    a, b, c, d = counter
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product1 = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, c = product1 >> np.uint64(32) ^ b ^ np.uint64(key0), product0 >> np.uint64(32) ^ d ^ np.uint64(key1)
        b, d = product1 & _LOW_32, product0 & _LOW_32
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return [word.astype(np.uint32) for word in (a, b, c, d)]


def standard_normal(words: UInt32) -> Float64:
    """Random words to standard normal numbers: inverse distribution at (word + 1/2) / 2^32, csrc/normal.hpp."""
    q = (words.astype(np.float64) + 0.5) * 2.0**-32 - 0.5
    magnitude = np.abs(q)
    in_tail = magnitude > 0.425
    normal = _ratio(0.180625 - q * q, _CENTRE_ABOVE, _CENTRE_BELOW) * q
    tail = _ratio(np.sqrt(_minus_log(0.5 - magnitude[in_tail])) - 1.6, _TAIL_ABOVE, _TAIL_BELOW)
    normal[in_tail] = np.where(q[in_tail] < 0, -tail, tail)
    return normal


def _ratio(r: Float64, above: tuple[float, ...], below: tuple[float, ...]) -> Float64:
    numerator, denominator = np.full(r.shape, above[0]), np.full(r.shape, below[0])
    for a, b in zip(above[1:], below[1:], strict=True):
        numerator = numerator * r + a
        denominator = denominator * r + b
    ratio: Float64 = numerator / denominator
    return ratio


def _minus_log(x: Float64) -> Float64:
    sqrt_half = np.uint64(0x3FE6A09E00000000)
    shifted = x.view(np.uint64) + (np.uint64(0x3FF0000000000000) - sqrt_half)
    m = ((shifted & np.uint64(0x000FFFFFFFFFFFFF)) + sqrt_half).view(np.float64)
    e = (shifted >> np.uint64(52)).astype(np.float64) - 1023.0
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    series = np.full(t.shape, 1.0 / 15.0)
    for odd in range(13, 0, -2):
        series = series * t + 1.0 / odd
    log: Float64 = e * 0.693147180559945309417 + (s + s) * series
    return -log
