"""Perplexity of windows of a text, with hidden states packed, unpacked and damaged between two layers as in serving.

Owns the measurement: what the source would send of every window is computed and packed once per split; every damaged
run then computes the layers behind the split alone. A window's first token is not scored. Tokens have positions in the
text, from 0 on through all windows, and a channel is a function of those: no two windows lose the same elements. See
"Adaptive Layer Splitting for Wireless LLM Inference" (arXiv 2406.02616), equation 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.executor import Executor, Float32
from agent.compute.kernel_twins import Bytes
from agent.compute.receiver import Receiver
from planner.channel import Channel
from planner.types import Codec, LayerRange

LOGIT_ELEMENTS = 4 << 20
"""Most logits that are held at a time, 16 MiB: a window of a model with 150,000 tokens is scored in ten pieces."""

Tick = Callable[[], None]
"""Called after every window; may raise to end the measurement."""


def _no_tick() -> None:
    """The default."""


@dataclass(frozen=True, slots=True)
class SentWindows:
    """What the source of a route sends of every window of a text when it has the first `split` layers."""

    split: int
    codec: Codec
    windows: NDArray[np.int64]
    """Token ids [windows, tokens]."""
    payloads: tuple[Bytes, ...]


def send_windows(
    executor: Executor, windows: NDArray[np.int64], split: int, codec: Codec, tick: Tick = _no_tick
) -> SentWindows:
    """Run the layers before the split over windows of token ids [n, s] and pack what comes out.

    Raises ValueError for a split that leaves either side without a layer, and for windows without a scored token.
    """
    layers = executor.spec.num_layers
    if not 1 <= split < layers:
        raise ValueError(f"split {split}: a model of {layers} layers has split points 1 to {layers - 1}")
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ValueError(f"windows {windows.shape}: at least one window of two tokens is expected")
    payloads = []
    for window in windows:
        hidden = executor.forward(LayerRange(0, split), executor.embed(window[None]), 0, [0])
        payloads.append(kernels.pack(hidden, codec))
        tick()
    return SentWindows(split, codec, windows, tuple(payloads))


def damaged_perplexity(
    executor: Executor, sent: SentWindows, channel: Channel | None, receiver: Receiver, tick: Tick = _no_tick
) -> float:
    """Perplexity of the text when what was sent arrives over `channel`; NaN or infinity where the model breaks."""
    total = 0.0
    rest = LayerRange(sent.split, executor.spec.num_layers)
    tokens = sent.windows.shape[1]
    for number, (window, payload) in enumerate(zip(sent.windows, sent.payloads, strict=True)):
        hidden = kernels.unpack(payload, sent.codec, (1, tokens, executor.spec.hidden_size))
        if channel is not None:
            # A window is a session of its own: a slot where no token was before.
            receiver.damage(hidden[0], channel, sent.split, number * tokens, codec=sent.codec, slot=number)
        total += negative_log_likelihood(executor, executor.forward(rest, hidden, 0, [0])[0], window)
        tick()
    return perplexity_of(total, len(sent.windows) * (tokens - 1))


def clean_perplexity(executor: Executor, windows: NDArray[np.int64], tick: Tick = _no_tick) -> float:
    """Perplexity of windows of token ids [n, s] with nothing between the layers."""
    everything = LayerRange(0, executor.spec.num_layers)
    total = 0.0
    for window in windows:
        hidden = executor.forward(everything, executor.embed(window[None]), 0, [0])
        total += negative_log_likelihood(executor, hidden[0], window)
        tick()
    return perplexity_of(total, windows.shape[0] * (windows.shape[1] - 1))


def negative_log_likelihood(executor: Executor, hidden: Float32, window: NDArray[np.int64]) -> float:
    """Sum over a window's tokens but the first of -log p(token | those before), in nats, from the last layer's hidden
    states [s, H]. In float32, which is quicker than the model; the sum is float64's."""
    following = window[1:]
    piece = max(1, LOGIT_ELEMENTS // executor.spec.vocab_size)
    total = 0.0
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for start in range(0, len(following), piece):
            wanted = following[start : start + piece]
            logits = executor.logits(hidden[start : start + len(wanted)])
            logits -= logits.max(axis=-1, keepdims=True)
            chosen = logits[np.arange(len(wanted)), wanted]
            np.exp(logits, out=logits)
            total += float((np.log(logits.sum(axis=-1)) - chosen).sum(dtype=np.float64))
    return total


def perplexity_of(total_nats: float, tokens: int) -> float:
    """exp of the mean negative log-likelihood (equation 7); infinity where that is more than a float holds."""
    try:
        return math.exp(total_nats / tokens)
    except OverflowError:
        return math.inf


class PerplexityMeter:
    """Measures one text on one loaded model, and keeps what the source sends at the split it was asked for last."""

    def __init__(
        self, executor: Executor, windows: NDArray[np.int64], codec: Codec, receiver: Receiver | None = None
    ) -> None:
        """`executor` has all layers resident and cut at every split that will be asked for; `receiver` mends damage."""
        self.executor = executor
        self.windows = windows
        self.codec: Codec = codec
        self.receiver = receiver or Receiver()
        self._sent: SentWindows | None = None

    def clean(self, tick: Tick = _no_tick) -> float:
        """Without any hop."""
        return clean_perplexity(self.executor, self.windows, tick)

    def at(self, split: int, channel: Channel | None, tick: Tick = _no_tick) -> float:
        """With a hop behind the first `split` layers, over `channel`. Raises ValueError for a split that is none."""
        if self._sent is None or self._sent.split != split:
            self._sent = None  # Not two at a time: they are as large as the text is long.
            self._sent = send_windows(self.executor, self.windows, split, self.codec, tick)
        return damaged_perplexity(self.executor, self._sent, channel, self.receiver, tick)

    def scheduled(self, schedule: Sequence[tuple[int, int]], channel: Channel, tick: Tick = _no_tick) -> float:
        """With a hop that moves: `schedule` is (position in the text, split from there on), rising from position 0.

        Keys and values of a token are those of its own split, as in a session that moved at a token boundary.
        """
        if not schedule or schedule[0][0] != 0 or any(first[0] >= then[0] for first, then in pairwise(schedule)):
            raise ValueError(f"schedule {list(schedule)[:4]}: rising positions from 0 on are expected")
        tokens = self.windows.shape[1]
        total = 0.0
        for number, window in enumerate(self.windows):
            total += self._scheduled_window(number * tokens, window, schedule, channel)
            tick()
        return perplexity_of(total, self.windows.shape[0] * (tokens - 1))

    def _scheduled_window(
        self, begin: int, window: NDArray[np.int64], schedule: Sequence[tuple[int, int]], channel: Channel
    ) -> float:
        executor, pieces = self.executor, []
        for start, stop, split in _segments(schedule, begin, begin + len(window)):
            ids = window[None, start - begin : stop - begin]
            at = [start - begin]
            hidden = executor.forward(LayerRange(0, split), executor.embed(ids), 0, at)
            hidden = kernels.unpack(kernels.pack(hidden, self.codec), self.codec, hidden.shape)
            self.receiver.damage(hidden[0], channel, split, start, codec=self.codec, slot=begin // len(window))
            pieces.append(executor.forward(LayerRange(split, executor.spec.num_layers), hidden, 0, at)[0].copy())
        return negative_log_likelihood(executor, np.concatenate(pieces), window)


def _segments(schedule: Sequence[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int, int]]:
    """The pieces of positions [begin, end) that have one split each, as (start, stop, split)."""
    edges = [*(position for position, _ in schedule), end]
    cut = [
        (max(begin, position), min(end, stop), split)
        for (position, split), stop in zip(schedule, edges[1:], strict=True)
    ]
    return [(start, stop, split) for start, stop, split in cut if start < stop]
