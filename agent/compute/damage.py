"""What an emulated channel does to hidden states, with the kernels that serving and evaluation share.

Everything is a function of (channel, layer boundary, position, element) alone, so an experiment repeats exactly
whatever the cut, the batch and the chunks. In this order: the token is sent with copies of its protected elements,
y' = h y + w ("Adaptive Layer Splitting for Wireless LLM Inference", arXiv 2406.02616, equation 3), elements or packets
are lost, copies stand in for lost originals, and the rest is concealed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.packets import packet_of, packets_per_token
from planner.channel import Channel, ChannelState
from planner.types import Codec

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
NOTHING_COPIED = np.empty(0, np.int64)


def damage(hidden: Float32, channel: Channel, layer: int, position: int, *, codec: Codec = "fp16") -> None:
    """Damage hidden states [tokens, H] of one session in place; the first token is at `position`, `layer` layers have
    been passed. `codec` is what they travelled in: it says how many packets a token takes."""
    for start, stop, state in runs(channel, position, len(hidden)):
        if not state.is_clean:
            _damage_run(hidden[start:stop], state, channel, (layer, position + start), codec)


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
    return _drawn(loss, channel.seed, layer, position, (tokens, packets))[:, where]


def _drawn(loss: float, seed: int, layer: int, position: int, shape: tuple[int, int]) -> Mask:
    kept = np.ones(shape, np.float32)
    kernels.erase(kept, loss, seed, layer, position)
    is_lost: Mask = kept == 0
    return is_lost


def _damage_run(hidden: Float32, state: ChannelState, channel: Channel, place: tuple[int, int], codec: Codec) -> None:
    layer, position = place
    _fade(hidden, state, channel.seed, layer, position)
    rescale = channel.concealment != "zero"
    if state.loss == 0.0:
        return
    if channel.granularity == "element":
        kernels.erase(hidden, state.loss, channel.seed, layer, position, rescale=rescale)
        return
    if rescale and state.loss < 1.0:
        hidden *= np.float32(1.0 / (1.0 - state.loss))
    tokens, size = hidden.shape
    hidden[lost(state.loss, channel, place, (tokens, size), codec=codec)] = 0.0


def _fade(hidden: Float32, state: ChannelState, seed: int, layer: int, position: int) -> None:
    """y' = h y + w; with an SNR, w is as strong as the token's own mean square says."""
    strength = None
    if state.snr_db is not None:
        power = np.array([float(np.add.reduce(np.square(row, dtype=np.float64))) for row in hidden]) / hidden.shape[1]
        strength = (state.gain * np.sqrt(power / 10.0 ** (state.snr_db / 10.0))).astype(np.float32)
    if state.gain != 1.0:
        hidden *= np.float32(state.gain)
    if strength is not None:
        noise = np.zeros_like(hidden)
        kernels.add_noise(noise, 1.0, seed, layer, position)
        hidden += strength[:, None] * noise
    elif state.sigma:
        kernels.add_noise(hidden, state.sigma, seed, layer, position)
