"""What an emulated channel does to hidden states, with the kernels that serving and evaluation share.

Everything is a function of (channel, layer boundary, position, element) alone, so an experiment repeats exactly
whatever the cut, the batch and the chunks. In this order: the token is sent with copies of its protected elements,
y' = h y + w ("Adaptive Layer Splitting for Wireless LLM Inference", arXiv 2406.02616, equation 3), elements or packets
are lost, copies stand in for lost originals, and the rest is concealed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.calibration import Calibration
from agent.compute.concealment import conceal, possible
from agent.compute.packets import packet_of, packets_per_token, protected_elements
from planner.channel import Channel, ChannelState
from planner.types import Codec

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
NOTHING_COPIED = np.empty(0, np.int64)


class Hop(NamedTuple):
    """What a token crosses, and what its receiver knows."""

    channel: Channel
    layer: int
    codec: Codec
    calibration: Calibration | None
    copied: NDArray[np.int64]
    """Elements that are sent twice."""


def damage(
    hidden: Float32,
    channel: Channel,
    layer: int,
    position: int,
    *,
    codec: Codec = "fp16",
    calibration: Calibration | None = None,
    before: Float32 | None = None,
) -> None:
    """Damage hidden states [tokens, H] of one session in place; the first token is at `position`, `layer` layers have
    been passed.

    `codec` is what they travelled in: it says how many packets a token takes. `calibration` is of this boundary:
    without one nothing is protected, and "mean" and "lmmse" are "rescale". `before` is the token before the first as
    this function left it, for "previous".
    """
    copied = NOTHING_COPIED
    if calibration is not None and channel.protection != "none":
        copied = calibration.strongest(protected_elements(hidden.shape[1], codec, channel))
    hop = Hop(channel, layer, codec, calibration, copied)
    for start, stop, state in runs(channel, position, len(hidden)):
        if not state.is_clean:
            _damage_run(hidden[start:stop], state, hop, position + start, hidden[start - 1].copy() if start else before)


def runs(channel: Channel, position: int, tokens: int) -> Iterator[tuple[int, int, ChannelState]]:
    """Half-open runs of tokens, from `position` on, for which the channel's state is the same."""
    start = 0
    while start < tokens:
        state = channel.state_at(position + start)
        stop = start + 1
        if len(channel.states) == 1:
            stop = tokens
        while stop < tokens and channel.state_at(position + stop) == state:
            stop += 1
        yield start, stop, state
        start = stop


def lost(
    loss: float,
    channel: Channel,
    place: tuple[int, int],
    shape: tuple[int, int],
    *,
    codec: Codec = "fp16",
    copied: NDArray[np.int64] = NOTHING_COPIED,
) -> Mask:
    """What is lost of `shape` (tokens, H) at `place` (layers passed, position of the first token), while the channel
    loses with probability `loss`: [tokens, H + k] with the k copies of the elements `copied` behind the others."""
    (layer, position), (tokens, size) = place, shape
    if channel.granularity == "element":
        return _drawn(loss, channel.seed, layer, position, (tokens, size + len(copied)))
    packets = packets_per_token(size, codec, channel)
    where = packet_of(size, packets, channel.interleaved, copied)
    return np.ascontiguousarray(_drawn(loss, channel.seed, layer, position, (tokens, packets))[:, where])


def _drawn(loss: float, seed: int, layer: int, position: int, shape: tuple[int, int]) -> Mask:
    kept = np.ones(shape, np.float32)
    kernels.erase(kept, loss, seed, layer, position)
    is_lost: Mask = kept == 0
    return is_lost


def _damage_run(hidden: Float32, state: ChannelState, hop: Hop, position: int, before: Float32 | None) -> None:
    """Tokens for which the channel's state is one."""
    channel, (tokens, size) = hop.channel, hidden.shape
    how = possible(channel.concealment, hop.calibration)
    sent = hidden
    if len(hop.copied):
        sent = np.concatenate([hidden, _copies(hidden[:, hop.copied], channel)], axis=1)
    _fade(sent, size, state, channel.seed, (hop.layer, position))
    if state.loss == 0.0:
        if sent is not hidden:
            hidden[...] = sent[:, :size]
        return
    if sent is hidden and channel.granularity == "element" and how in ("zero", "rescale"):
        kernels.erase(hidden, state.loss, channel.seed, hop.layer, position, rescale=how == "rescale")
        return
    missing = lost(state.loss, channel, (hop.layer, position), (tokens, size), codec=hop.codec, copied=hop.copied)
    survival = np.full(size, 1.0 - state.loss)
    if sent is not hidden:
        hidden[...] = sent[:, :size]
        original, copy = missing[:, hop.copied], missing[:, size:]
        hidden[:, hop.copied] = np.where(original & ~copy, sent[:, size:], hidden[:, hop.copied])
        missing[:, hop.copied] &= copy
        survival[hop.copied] = 1.0 - state.loss**2 if not _is_one_packet(size, hop) else 1.0 - state.loss
    conceal(
        hidden,
        np.ascontiguousarray(missing[:, :size]),
        how,
        state,
        survival=survival.astype(np.float32),
        calibration=hop.calibration,
        before=before,
    )


def _is_one_packet(size: int, hop: Hop) -> bool:
    return hop.channel.granularity == "packet" and packets_per_token(size, hop.codec, hop.channel) == 1


def _copies(elements: Float32, channel: Channel) -> Float32:
    """What a receiver has of the copies of protected elements [tokens, k] when they come."""
    if channel.protection != "int8":
        return elements
    elements = np.ascontiguousarray(elements)
    return kernels.unpack(kernels.pack(elements, "int8"), "int8", elements.shape)


def _fade(sent: Float32, size: int, state: ChannelState, seed: int, place: tuple[int, int]) -> None:
    """y' = h y + w; with an SNR, w is as strong as the token's own mean square over its `size` elements says."""
    layer, position = place
    strength = None
    if state.snr_db is not None:
        power = np.array([float(np.add.reduce(np.square(row[:size], dtype=np.float64))) for row in sent]) / size
        strength = (state.gain * np.sqrt(power / 10.0 ** (state.snr_db / 10.0))).astype(np.float32)
    if state.gain != 1.0:
        sent *= np.float32(state.gain)
    if strength is not None:
        noise = np.zeros_like(sent)
        kernels.add_noise(noise, 1.0, seed, layer, position)
        sent += strength[:, None] * noise
    elif state.sigma:
        kernels.add_noise(sent, state.sigma, seed, layer, position)
