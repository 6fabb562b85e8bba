"""An executor that computes nothing and takes the time a profile says: a device played by a process.

Predicted and emulated are the same numbers: both come from `planner.device_times`. What passes through is a little of
each token, enough to tell a frame of one row from another's; the text means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.compute.executor import IDLE, KvArray
from planner.device_times import DeviceTimes
from planner.model_spec import ModelSpec
from planner.types import LayerRange

Float32 = NDArray[np.float32]

SLACK_S = 80e-6
"""A sleeping process wakes up about this late; the rest of a wait is spent looking at the clock."""

MARK_VALUES = 251
"""Tokens leave a number below this in their hidden state: every boundary type and codec carries it without loss."""


class EmulatedExecutor:
    """Satisfies `agent.compute.executor.Executor` without weights; refuses what the real one refuses."""

    def __init__(
        self,
        spec: ModelSpec,
        times: DeviceTimes,
        resident: tuple[LayerRange, ...],
        *,
        slots: int,
        context: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.spec = spec
        self.resident = resident
        self.slots = slots
        self.context = context
        self._times = times
        self._clock = clock
        self._sleep = sleep
        self.kv_type: Literal["fp32", "fp16"] = "fp32"
        self._held = [0] * slots
        self._ran_until_s = 0.0
        """When the part before ended, for the next one of the same run: embedding, layers, head."""
        self._run_has: Literal["nothing", "embedding", "layers"] = "nothing"

    def embed(self, tokens: NDArray[np.int64]) -> Float32:
        """Token ids [n, s] to hidden states [n, s, H], zero but for a mark of the token."""
        began_s = self._clock()
        if not any(0 in layers for layers in self.resident):
            raise ValueError("embedding: layer 0 is not resident here")
        if tokens.ndim != 2 or tokens.size == 0:
            raise ValueError(f"embedding: tokens are {tokens.shape}, expected [n, s]")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.spec.vocab_size:
            raise ValueError(f"embedding: token ids {low} to {high} do not lie in 0 to {self.spec.vocab_size - 1}")
        hidden = np.zeros((*tokens.shape, self.spec.hidden_size), np.float32)
        hidden[..., 0] = tokens % MARK_VALUES
        self._run(began_s, tokens.size * self._times.embedding_ms)
        self._run_has = "embedding"
        return hidden

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        """Takes the profiled time of `layers` for these rows or tokens; returns what came in."""
        began_s = self._ran_until_s if self._run_has == "embedding" else self._clock()
        _, tokens = self._checked(layers, hidden, slot, positions)
        active = [position for position in positions if position != IDLE]
        for row, position in enumerate(positions):
            if position != IDLE:
                self._held[slot + row] = position + tokens
        layer_ms = (
            self._times.prefill(tokens) if tokens > 1 else self._times.decode(len(active), sum(active) / len(active))
        )
        self._run(began_s, self._times.stage_ms + len(layers) * layer_ms)
        self._run_has = "layers"
        return hidden

    def logits(self, hidden: Float32) -> Float32:
        """Hidden states [n, H] to logits [n, V] with one token far above all others, which depends on the mark."""
        began_s = self._ran_until_s if self._run_has == "layers" else self._clock()
        if not any(layers.stop == self.spec.num_layers for layers in self.resident):
            raise ValueError(f"head: layer {self.spec.num_layers - 1} is not resident here")
        rows, vocabulary = len(hidden), self.spec.vocab_size
        logits = np.zeros((rows, vocabulary), np.float32)
        chosen = (31 * hidden[:, 0].astype(np.int64) + 7) % min(vocabulary, MARK_VALUES)
        logits[np.arange(rows), chosen] = 100.0
        self._run(began_s, self._times.head(rows))
        self._run_has = "nothing"
        return logits

    def read_kv(self, layers: LayerRange, slot: int, start: int, stop: int) -> KvArray:
        """As many bytes as there would be, all zero."""
        self._check_kv(layers, slot, start, stop, self._held[slot] if 0 <= slot < self.slots else 0)
        return np.zeros((len(layers), 2, self.spec.num_kv_heads, stop - start, self.spec.head_dim), np.float32)

    def write_kv(self, layers: LayerRange, slot: int, start: int, values: KvArray) -> None:
        """What comes is forgotten, but for its length."""
        stop = start + (values.shape[3] if values.ndim == 5 else 0)
        self._check_kv(layers, slot, start, stop, self.context)
        self._held[slot] = max(self._held[slot], stop)

    def _check_kv(self, layers: LayerRange, slot: int, start: int, stop: int, most: int) -> None:
        if not any(resident.covers(layers) for resident in self.resident):
            raise ValueError(f"keys and values of layers {layers}: they are not resident")
        if not 0 <= slot < self.slots or not 0 <= start < stop <= most:
            raise ValueError(f"keys and values of tokens {start} to {stop - 1} of slot {slot}: it has {most}")

    def saturated(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held."""

    def _run(self, began_s: float, ms: float) -> None:
        """Wait until the device would be done. A part that woke up late does not make the next one later."""
        until_s = began_s + ms / 1e3
        left_s = until_s - self._clock()
        if left_s > SLACK_S:
            self._sleep(left_s - SLACK_S)
        while self._clock() < until_s:
            pass
        self._ran_until_s = until_s

    def _checked(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> tuple[int, int]:
        """Rows and tokens of a run; ValueError for what a device with these layers could not run."""
        if not any(resident.covers(layers) for resident in self.resident):
            raise ValueError(f"layers {layers} are not resident")
        if hidden.ndim != 3 or hidden.shape[2] != self.spec.hidden_size:
            raise ValueError(f"hidden states are {hidden.shape}, expected [n, s, {self.spec.hidden_size}]")
        rows, tokens = hidden.shape[0], hidden.shape[1]
        if rows < 1 or tokens < 1 or (rows > 1 and tokens > 1):
            raise ValueError(f"{rows} rows of {tokens} tokens: a run is one row or one token per row")
        if slot < 0 or slot + rows > self.slots or len(positions) != rows:
            raise ValueError(f"{len(positions)} positions for slots {slot} to {slot + rows - 1} of {self.slots}")
        for row, position in enumerate(positions):
            if position == IDLE:
                continue
            if not 0 <= position <= self._held[slot + row] or position + tokens > self.context + 1:
                raise ValueError(
                    f"slot {slot + row}: {tokens} tokens at position {position}; "
                    f"the slot holds {self._held[slot + row]} tokens and has room for {self.context + 1}"
                )
        return rows, tokens
