"""Philox4x32-10, one block at a time: the counter-based generator behind sampling.

The same counter and key give the same words on every machine, so a draw needs no state. Salmon et al., "Parallel
Random Numbers: As Easy as 1, 2, 3" (SC11). For whole tensors there are the kernels.
"""

from __future__ import annotations

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_ROUNDS = 10

Words4 = tuple[int, int, int, int]


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Four 32-bit words for a counter of four words and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (product_1 >> 32) ^ c1 ^ k0, product_1 & _WORD, (product_0 >> 32) ^ c3 ^ k1, product_0 & _WORD
        k0, k1 = (k0 + _WEYL_0) & _WORD, (k1 + _WEYL_1) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, position: int, stream: int) -> float:
    """A number in [0, 1) with 53 random bits; `stream` tells purposes apart. Any integers do, taken modulo 2**64."""
    counter = (position & _WORD, (position >> 32) & _WORD, stream & _WORD, (stream >> 32) & _WORD)
    high, low, _, _ = philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD))
    return float((high >> 5) * (1 << 26) + (low >> 6)) / (1 << 53)
