"""What of a token's hidden states travels in which datagram, and how many bits that takes.

A token is sent as its H elements, and behind them copies of the few that are protected. With packets it is cut into
equal shares of at most a datagram's payload each: the fewest that hold it. Where a copy would share its original's
packet it goes half way round, so that one loss never takes both. Scales of int8 and int4 are counted, and travel in the
frame's header, which is never lost: without it a receiver would not know what is missing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.channel import Channel
from planner.types import Codec

PROTECTED_SHARE = 0.05
"""Of a token's bits: what protection may add to them."""

_ELEMENT_BITS: dict[Codec, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}
_INT4_GROUP = 32
_COPY_BITS, _COPY_SCALE_BITS = 8, 32
"""Of a copy in eight bits, and of the scale that all of a token share."""


def token_bits(hidden_size: int, codec: Codec) -> int:
    """Bits of one token's hidden states in `codec`, without copies."""
    if codec == "int4":
        return 8 * -(-hidden_size // 2) + 16 * -(-hidden_size // _INT4_GROUP)
    return hidden_size * _ELEMENT_BITS[codec] + (32 if codec == "int8" else 0)


def protected_elements(hidden_size: int, codec: Codec, channel: Channel) -> int:
    """How many elements are sent twice: what `PROTECTED_SHARE` pays for."""
    spare = int(PROTECTED_SHARE * token_bits(hidden_size, codec))
    if channel.protection == "repeat":
        return spare // _ELEMENT_BITS[codec]
    if channel.protection == "int8":
        return max(0, spare - _COPY_SCALE_BITS) // _COPY_BITS
    return 0


def bits_per_token(hidden_size: int, codec: Codec, channel: Channel) -> int:
    """Bits that one token takes on the link: elements, scales, and copies of the protected ones."""
    copies = protected_elements(hidden_size, codec, channel)
    bits = token_bits(hidden_size, codec)
    if copies and channel.protection == "int8":
        return bits + copies * _COPY_BITS + _COPY_SCALE_BITS
    return bits + copies * _ELEMENT_BITS[codec]


def packets_per_token(hidden_size: int, codec: Codec, channel: Channel) -> int:
    """The fewest datagrams that hold a token."""
    return -(-bits_per_token(hidden_size, codec, channel) // (8 * channel.packet_bytes))


def packet_of(hidden_size: int, packets: int, is_interleaved: bool, copied: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of `packets` each element is in, and behind the elements each copy of the elements `copied`: [H + k]."""
    own = _own_packet(hidden_size, packets, is_interleaved)
    return np.concatenate([own, (own[copied] + packets // 2) % packets])


@lru_cache(maxsize=64)
def _own_packet(hidden_size: int, packets: int, is_interleaved: bool) -> NDArray[np.int64]:
    element = np.arange(hidden_size)
    own = element % packets if is_interleaved else element * packets // hidden_size
    own.flags.writeable = False
    return own
