"""An executor that computes nothing and takes a known time, on a clock that only it moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.model_spec import ModelSpec
from planner.types import LayerRange

Float32 = NDArray[np.float32]


@dataclass
class Clock:
    now_s: float = 100.0
    slept: bool = False

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept = True


@dataclass
class Pace:
    """Seconds of everything an executor does."""

    layer: Callable[[int, int, int], float] = lambda rows, tokens, context: 0.002
    """(rows, tokens per row, context) → one layer."""
    call: float = 0.0005
    waking: float = 0.0
    """A call after a pause, on top."""
    head: Callable[[int], float] = lambda rows: 0.003
    embedding: float = 0.00001
    """One token."""
    disturbance: Callable[[int], float] = lambda number: 0.0
    """Added to the forward call of this number."""


@dataclass
class TimedExecutor:
    """Satisfies `agent.device.rounds.TimedExecutor`."""

    spec: ModelSpec
    resident: tuple[LayerRange, ...]
    slots: int
    context: int
    clock: Clock
    pace: Pace = field(default_factory=Pace)
    calls: int = 0
    held: int = 0
    closed: bool = False

    def embed(self, tokens: NDArray[np.int64]) -> Float32:
        assert self.resident[0].start == 0
        self.clock.now_s += self.pace.embedding * tokens.size
        return np.zeros((*tokens.shape, self.spec.hidden_size), np.float32)

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        rows, tokens, _ = hidden.shape
        assert layers in self.resident
        assert slot + rows <= self.slots
        assert rows == 1 or tokens == 1
        assert all(0 <= position <= self.held and position + tokens <= self.context + 1 for position in positions)
        self.clock.now_s += self.pace.call + len(layers) * self.pace.layer(rows, tokens, positions[0])
        self.clock.now_s += self.pace.disturbance(self.calls) + self.pace.waking * self.clock.slept
        self.clock.slept = False
        self.calls += 1
        return hidden

    def logits(self, hidden: Float32) -> Float32:
        assert self.resident[-1].stop == self.spec.num_layers
        self.clock.now_s += self.pace.head(len(hidden))
        return np.zeros((len(hidden), self.spec.vocab_size), np.float32)

    def assume_held(self, tokens: int) -> None:
        self.held = tokens

    def saturated(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True
