"""Which elements travel together, and what that takes in bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.packets import (
    PROTECTED_SHARE,
    bits_per_token,
    packet_of,
    packets_per_token,
    protected_elements,
    token_bits,
)
from agent.wire.codec import CODEC_IDS, payload_bytes
from planner.channel import Channel, ChannelState, Protection
from planner.types import Codec


def channel(protection: Protection = "none", packet_bytes: int = 64) -> Channel:
    return Channel((ChannelState(),), protection=protection, packet_bytes=packet_bytes, granularity="packet")


@pytest.mark.parametrize("codec", list(CODEC_IDS))
@pytest.mark.parametrize("size", [32, 256, 4096])
def test_a_token_takes_the_wires_bits(codec: Codec, size: int) -> None:
    assert bits_per_token(size, codec, channel()) == token_bits(size, codec)
    assert token_bits(size, codec) == 8 * payload_bytes(CODEC_IDS[codec], (1, 1, size))


@given(st.sampled_from(list(CODEC_IDS)), st.integers(1, 9000), st.sampled_from(["none", "repeat", "int8"]))
def test_protection_never_takes_more_than_its_share(codec: Codec, size: int, protection: Protection) -> None:
    with_copies = bits_per_token(size, codec, channel(protection))
    assert token_bits(size, codec) <= with_copies <= (1 + PROTECTED_SHARE) * token_bits(size, codec)
    assert protected_elements(size, codec, channel(protection)) <= size
    if protection == "none":
        assert with_copies == token_bits(size, codec)


def test_what_protection_pays_for() -> None:
    assert protected_elements(256, "fp16", channel("repeat")) == 12
    assert protected_elements(256, "fp16", channel("int8")) == 21
    assert bits_per_token(256, "fp16", channel("int8")) == 256 * 16 + 21 * 8 + 32


@given(st.integers(1, 600), st.booleans(), st.integers(64, 500), st.sampled_from(list(CODEC_IDS)))
def test_packets_are_equal_shares_that_hold_a_token(size: int, interleaved: bool, payload: int, codec: Codec) -> None:
    count = packets_per_token(size, codec, channel(packet_bytes=payload))
    assert (count - 1) * 8 * payload < token_bits(size, codec) <= count * 8 * payload
    shares = np.bincount(packet_of(size, count, interleaved, np.arange(0)), minlength=count)
    assert shares.sum() == size
    assert shares.max() - shares.min() <= 1 or count > size


def test_interleaving_puts_neighbours_apart() -> None:
    together, apart = (packet_of(64, 4, interleaved, np.arange(0)) for interleaved in (False, True))
    assert (np.diff(together) == 0).sum() == 60
    assert (np.diff(apart) == 0).sum() == 0


@given(st.integers(2, 9), st.booleans())
def test_one_loss_never_takes_an_element_and_its_copy(count: int, interleaved: bool) -> None:
    copied = np.array([0, 3, 17, 63])
    where = packet_of(64, count, interleaved, copied)
    assert len(where) == 68
    assert (where[copied] != where[64:]).all()
