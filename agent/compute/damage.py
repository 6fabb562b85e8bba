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
Span = tuple[int, int, ChannelState]
"""Tokens [start, stop) for which the channel's state is the same."""
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
    spans = list(runs(channel, position, len(hidden)))
    if all(state.is_clean for *_, state in spans):
        return
    sent = hidden
    if len(copied):
        sent = np.concatenate([hidden, _copies(hidden[:, copied], channel)], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # A channel may break numbers; that is a result.
        _fade(sent, hidden.shape[1], spans, channel.seed, (layer, position))
        if sent is not hidden:
            hidden[...] = sent[:, : hidden.shape[1]]
        for start, stop, state in spans:
            if start and channel.concealment == "previous":
                before = hidden[start - 1].copy()
            if state.loss:
                copies = sent[start:stop, hidden.shape[1] :]
                _lose(hidden[start:stop], copies, state, hop, position + start, before=before)


def runs(channel: Channel, position: int, tokens: int) -> Iterator[Span]:
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


def _lose(
    hidden: Float32, copies: Float32, state: ChannelState, hop: Hop, position: int, *, before: Float32 | None
) -> None:
    """Lose and conceal elements of tokens for which the channel's state is one; `copies` came of the protected ones."""
    channel, (tokens, size) = hop.channel, hidden.shape
    how = possible(channel.concealment, hop.calibration)
    if not len(hop.copied) and channel.granularity == "element" and how in ("zero", "rescale"):
        kernels.erase(hidden, state.loss, channel.seed, hop.layer, position, rescale=how == "rescale")
        return
    place = hop.layer, position
    missing = lost(state.loss, channel, place, (tokens, size), codec=hop.codec, copied=hop.copied)
    survival = np.full(size, 1.0 - state.loss, np.float32)
    if len(hop.copied):
        original, copy = missing[:, hop.copied], missing[:, size:]
        hidden[:, hop.copied] = np.where(original, copies, hidden[:, hop.copied])
        missing[:, hop.copied] &= copy
        if not _is_one_packet(size, hop):
            survival[hop.copied] = 1.0 - state.loss**2
    conceal(
        hidden,
        np.ascontiguousarray(missing[:, :size]),
        how,
        state,
        survival=survival,
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


def _fade(sent: Float32, size: int, spans: list[Span], seed: int, place: tuple[int, int]) -> None:
    """y' = h y + w; with an SNR, w is as strong as the token's own mean square over its `size` elements says."""
    gain, strength = np.ones(len(sent), np.float32), np.zeros(len(sent), np.float32)
    for start, stop, state in spans:
        gain[start:stop] = state.gain
        strength[start:stop] = state.sigma
        if state.snr_db is not None:
            energy = [float(np.add.reduce(np.square(row[:size], dtype=np.float64))) for row in sent[start:stop]]
            strength[start:stop] = state.gain * np.sqrt(np.array(energy) / size / 10.0 ** (state.snr_db / 10.0))
    if (gain != 1.0).any():
        sent *= gain[:, None]
    noisy = np.flatnonzero(strength)
    if len(noisy):
        layer, position = place
        noise = np.zeros_like(sent)
        kernels.add_noise(noise, 1.0, seed, layer, position)
        sent[noisy] += strength[noisy, None] * noise[noisy]
