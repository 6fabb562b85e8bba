"""Timed runs of loaded layers: what a stage does for a step, piece by piece, in the order in which it does it.

Every round goes through all resident layers, then the head, so that each finds the caches as a token of a session
would leave them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from agent.compute import kernels
from agent.compute.executor import Executor
from agent.compute.sampling import sample
from agent.device.timing import Clock, Effort, repeat
from agent.wire.messages import Sampling
from planner.types import Codec

GREEDY = Sampling(temperature=0.0)


class TimedExecutor(Executor, Protocol):
    """An executor whose slots can be said to hold tokens that were never computed."""

    def assume_held(self, tokens: int) -> None: ...


@dataclass(slots=True)
class RoundTimes:
    """Seconds of each round, warm-up left out."""

    ranges: tuple[list[float], ...]
    """Per resident layer range."""
    ends: list[float] = field(default_factory=list)
    """Unpacking the frame that came and packing the one that goes."""
    embedding: list[float] = field(default_factory=list)
    """Per token; empty where layer 0 is not resident."""
    head: list[float] = field(default_factory=list)
    """Head and sampling of all rows; empty where the last layer is not resident."""
    started_s: float = 0.0
    finished_s: float = 0.0


class Rounds:
    """Rounds over one executor."""

    def __init__(self, executor: TimedExecutor, codec: Codec, clock: Clock, seed: int = 0) -> None:
        self._executor = executor
        self._codec = codec
        self._clock = clock
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._has_embedding = executor.resident[0].start == 0
        self._has_head = executor.resident[-1].stop == executor.spec.num_layers

    def decode(self, rows: int, context: int, effort: Effort) -> RoundTimes:
        """One token for each of `rows` rows that hold `context` tokens."""
        return self._rounds(rows, 1, context, effort)

    def prefill(self, tokens: int, effort: Effort) -> RoundTimes:
        """The first `tokens` tokens of one row."""
        return self._rounds(1, tokens, 0, effort)

    def _rounds(self, rows: int, tokens: int, context: int, effort: Effort) -> RoundTimes:
        times = RoundTimes(tuple([] for _ in self._executor.resident))
        self._executor.assume_held(context)
        run = self._round(rows, tokens, context, times)
        times.started_s = self._clock()
        runs = repeat(run, effort, self._clock)
        times.finished_s = self._clock()
        for samples in (*times.ranges, times.ends, times.embedding, times.head):
            del samples[:-runs]
        return times

    def _round(self, rows: int, tokens: int, context: int, times: RoundTimes) -> Callable[[], None]:
        executor, clock, codec = self._executor, self._clock, self._codec
        shape = (rows, tokens, executor.spec.hidden_size)
        payload = kernels.pack(self._random.standard_normal(shape, dtype=np.float32), codec)
        ids = self._random.integers(0, executor.spec.vocab_size, (rows, tokens))
        positions = [context] * rows
        counts: Counter[int] = Counter()

        def run() -> None:
            if self._has_embedding:
                before_s = clock()
                executor.embed(ids)
                times.embedding.append((clock() - before_s) / ids.size)
            before_s = clock()
            hidden = kernels.unpack(payload, codec, shape)
            ends_s = clock() - before_s
            for layers, samples in zip(executor.resident, times.ranges, strict=True):
                before_s = clock()
                hidden = executor.forward(layers, hidden, 0, positions)
                samples.append(clock() - before_s)
            before_s = clock()
            kernels.pack(hidden, codec)
            times.ends.append(ends_s + clock() - before_s)
            # A prompt's last chunk samples one row, as a decode step of one row does: timed there.
            if self._has_head and tokens == 1:
                before_s = clock()
                for logits in executor.logits(hidden[:, -1]):
                    sample(logits, GREEDY, context + 1, counts)
                times.head.append(clock() - before_s)

        return run
