"""An executor of exact integers, and an oracle that computes its tokens without slots, chunks, rows or stages.

Every hidden element depends on the token, the layer, the position and everything its slot holds so far, so a frame
that is lost, repeated, out of order, at a wrong position or in a wrong slot changes every token after it. Elements
stay below 251: fp32, fp16 and bf16 carry them without loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.compute.executor import IDLE, KvArray
from agent.compute.sampling import sample
from agent.wire.messages import OpenSession, Sampling
from planner.model_spec import ModelSpec, RopeSpec
from planner.types import LayerRange

HIDDEN = 8
VOCABULARY = 97
MODULUS = 251

Float32 = NDArray[np.float32]


def fake_spec(num_layers: int, context: int) -> ModelSpec:
    return ModelSpec(
        architecture="llama",
        num_layers=num_layers,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_heads=1,
        num_kv_heads=1,
        head_dim=HIDDEN,
        vocab_size=VOCABULARY,
        max_positions=context,
        rms_norm_eps=1e-5,
        rope=RopeSpec(),
        tied_embeddings=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=(None,) * num_layers,
    )


class FakeExecutor:
    """Satisfies `agent.compute.executor.Executor`; refuses what the real one refuses, and a position with a gap."""

    kv_type: Literal["fp32", "fp16"] = "fp32"

    def __init__(self, num_layers: int, resident: tuple[LayerRange, ...], *, slots: int, context: int) -> None:
        self.spec = fake_spec(num_layers, context)
        self.resident = resident
        self.slots = slots
        self.context = context
        self._memory = np.zeros((num_layers, slots, context + 1, HIDDEN), np.int64)
        self._held = np.zeros((num_layers, slots), np.int64)
        self._weights = np.arange(1, context + 2)[:, None]

    def embed(self, tokens: NDArray[np.int64]) -> Float32:
        assert any(0 in layers for layers in self.resident), "layer 0 is not resident"
        if tokens.min() < 0 or tokens.max() >= VOCABULARY:
            raise ValueError(f"token ids {tokens.min()} to {tokens.max()} do not lie in 0 to {VOCABULARY - 1}")
        channel = np.arange(HIDDEN)
        return ((tokens[..., None] * (channel + 3) + channel) % MODULUS).astype(np.float32)

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        rows, tokens = hidden.shape[:2]
        if not any(resident.covers(layers) for resident in self.resident):
            raise ValueError(f"layers {layers} are not resident")
        if rows != len(positions) or (rows > 1 and tokens > 1) or slot < 0 or slot + rows > self.slots:
            raise ValueError(f"{rows} rows of {tokens} tokens from slot {slot} on, {len(positions)} positions")
        for row, position in enumerate(positions):
            held = int(self._held[layers.start : layers.stop, slot + row].min())
            if position != IDLE and (not 0 <= position <= held or position + tokens > self.context + 1):
                raise ValueError(f"slot {slot + row}: {tokens} tokens at {position}, it holds {held}")
        values = hidden.astype(np.int64)
        for layer in layers:
            for row, position in enumerate(positions):
                if position != IDLE:
                    values[row] = self._layer(layer, values[row], slot + row, position)
        return values.astype(np.float32)

    def read_kv(self, layers: LayerRange, slot: int, start: int, stop: int) -> KvArray:
        self._check_kv(layers, slot, start, stop, stop)
        part = self._memory[layers.start : layers.stop, slot, start:stop]
        return np.stack([part, MODULUS - part], axis=1)[:, :, None].astype(np.float32)

    def write_kv(self, layers: LayerRange, slot: int, start: int, values: KvArray) -> None:
        stop = start + values.shape[3]
        self._check_kv(layers, slot, start, stop, start)
        if values.shape != (len(layers), 2, 1, stop - start, HIDDEN) or values.dtype != np.float32:
            raise ValueError(f"keys and values are {values.dtype} {values.shape}")
        keys, others = values[:, 0, 0].astype(np.int64), values[:, 1, 0].astype(np.int64)
        assert (keys + others == MODULUS).all(), "keys and values do not belong to each other"
        self._memory[layers.start : layers.stop, slot, start:stop] = keys
        held = self._held[layers.start : layers.stop, slot]
        held[:] = np.maximum(held, stop)

    def _check_kv(self, layers: LayerRange, slot: int, start: int, stop: int, needed: int) -> None:
        if not any(resident.covers(layers) for resident in self.resident):
            raise ValueError(f"layers {layers} are not resident")
        held = int(self._held[layers.start : layers.stop, slot].min())
        if not 0 <= start < stop <= self.context or needed > held:
            raise ValueError(f"slot {slot}: keys and values of {start} to {stop} of {held} tokens")

    def _layer(self, layer: int, values: NDArray[np.int64], slot: int, position: int) -> NDArray[np.int64]:
        end = position + len(values)
        memory = self._memory[layer, slot]
        memory[position:end] = values
        self._held[layer, slot] = end
        seen = np.cumsum(memory[:end] * self._weights[:end], axis=0)[position:]
        places = np.arange(position, end)[:, None]
        mixed: NDArray[np.int64] = (3 * values + 5 * np.roll(seen, 1, axis=1) + 7 * layer + 11 * places) % MODULUS
        return mixed

    def logits(self, hidden: Float32) -> Float32:
        assert any(self.spec.num_layers == layers.stop for layers in self.resident), "the last layer is not resident"
        return np.stack([logits_of([int(value) for value in row]) for row in hidden])

    def saturated(self) -> int:
        return 0

    def close(self) -> None:
        self._held[:] = 0


def logits_of(hidden: Sequence[int]) -> Float32:
    """The highest is at a token that every element moves."""
    best = sum((2 * channel + 1) * value for channel, value in enumerate(hidden)) % VOCABULARY
    return np.array([-((token - best) * 37 % VOCABULARY) for token in range(VOCABULARY)], np.float32)


def expected_tokens(
    num_layers: int,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    *,
    stop_ids: Sequence[int] = (),
    context: int = 1 << 20,
) -> list[int]:
    """The tokens of one session, by running sums alone: no slots, no chunks, no NumPy in the layers."""
    sums = [[0] * HIDDEN for _ in range(num_layers)]
    position = 0
    hidden: list[int] = []

    def feed(token: int) -> None:
        nonlocal position, hidden
        hidden = [(token * (channel + 3) + channel) % MODULUS for channel in range(HIDDEN)]
        for layer in range(num_layers):
            sums[layer] = [total + (position + 1) * value for total, value in zip(sums[layer], hidden, strict=True)]
            hidden = [
                (3 * hidden[channel] + 5 * sums[layer][channel - 1] + 7 * layer + 11 * position) % MODULUS
                for channel in range(HIDDEN)
            ]
        position += 1

    def fed(token: int, at: int) -> list[int]:
        assert at == position
        feed(token)
        return hidden

    return sampled_tokens(fed, OpenSession("", 0, tuple(prompt), max_tokens, sampling, tuple(stop_ids)), context)


def sampled_tokens(feed: Callable[[int, int], list[int]], opened: OpenSession, context: int) -> list[int]:
    """Tokens of a session, of which `feed` (token, position) gives the last hidden state."""
    tokens: list[int] = []
    counts: Counter[int] = Counter()
    hidden: list[int] = []
    for position, token in enumerate(opened.prompt):
        hidden = feed(token, position)
    position = len(opened.prompt)
    while True:
        token = sample(logits_of(hidden), opened.sampling, position, counts).token
        tokens.append(token)
        counts[token] += 1
        if token in opened.stop_ids or len(tokens) == opened.max_tokens or position == context:
            return tokens
        hidden = feed(token, position)
        position += 1
