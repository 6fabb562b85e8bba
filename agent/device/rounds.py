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
from agent.wire.codec import CODEC_IDS, Frame, FrameKind, decode, encode
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
    """Unpacking the frame that came and packing the one that goes, once per layer range."""
    embedding: list[float] = field(default_factory=list)
    """Per token; empty where layer 0 is not resident."""
    head: list[float] = field(default_factory=list)
    """Head and sampling of all rows; empty where the last layer is not resident."""
    intervals: list[tuple[float, float]] = field(default_factory=list)
    """When it was measured, begin and end on the clock."""

    def add(self, later: RoundTimes) -> None:
        """Take over what another pass over the same point measured."""
        for mine, more in zip(self.lists(), later.lists(), strict=True):
            mine.extend(more)
        self.intervals += later.intervals

    def lists(self) -> tuple[list[float], ...]:
        return (*self.ranges, self.ends, self.embedding, self.head)


class Rounds:
    """Rounds over one executor."""

    def __init__(
        self,
        executor: TimedExecutor,
        codec: Codec,
        clock: Clock,
        sleep: Callable[[float], None],
        seed: int = 0,
    ) -> None:
        self._executor = executor
        self._sleep = sleep
        self._codec = codec
        self._clock = clock
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._has_embedding = executor.resident[0].start == 0
        self._has_head = executor.resident[-1].stop == executor.spec.num_layers

    def decode(self, rows: int, context: int, effort: Effort, pause_s: float = 0.0) -> RoundTimes:
        """One token for each of `rows` rows that hold `context` tokens; the device rests before each layer range."""
        return self._rounds(rows, 1, context, effort, pause_s)

    def prefill(self, tokens: int, effort: Effort) -> RoundTimes:
        """The first `tokens` tokens of one row."""
        return self._rounds(1, tokens, 0, effort, 0.0)

    def _rounds(self, rows: int, tokens: int, context: int, effort: Effort, pause_s: float) -> RoundTimes:
        times = RoundTimes(tuple([] for _ in self._executor.resident))
        self._executor.assume_held(context)
        run = self._round(rows, tokens, context, pause_s, times)
        started_s = self._clock()
        runs = repeat(run, effort, self._clock)
        times.intervals.append((started_s, self._clock()))
        for samples in times.lists():
            del samples[: -runs * (len(times.ranges) if samples is times.ends else 1)]
        return times

    def _round(self, rows: int, tokens: int, context: int, pause_s: float, times: RoundTimes) -> Callable[[], None]:
        executor, clock, codec = self._executor, self._clock, self._codec
        shape = (rows, tokens, executor.spec.hidden_size)
        states = self._random.standard_normal(shape, dtype=np.float32)
        payload = kernels.pack(states, codec)
        frame = Frame(FrameKind.PROBE, 0, 0, 0, codec=CODEC_IDS[codec], shape=shape, payload=payload.data)
        parts = encode(frame, kernels.crc32c)
        ids = self._random.integers(0, executor.spec.vocab_size, (rows, tokens))
        positions = [context] * rows
        counts: Counter[int] = Counter()

        def run() -> None:
            if self._has_embedding:
                before_s = clock()
                executor.embed(ids)
                times.embedding.append((clock() - before_s) / ids.size)
            for layers, samples in zip(executor.resident, times.ranges, strict=True):
                if pause_s:
                    self._sleep(pause_s)
                # As in serving, a frame has been read and checked before: that wakes a device up and is part of a hop.
                received = decode(parts, kernels.crc32c)
                before_s = clock()
                hidden = kernels.unpack(received.payload, codec, shape)
                unpacked_s = clock()
                hidden = executor.forward(layers, hidden, 0, positions)
                computed_s = clock()
                kernels.pack(hidden, codec)
                samples.append(computed_s - unpacked_s)
                times.ends.append(clock() - computed_s + unpacked_s - before_s)
            # A prompt's last chunk samples one row, as a decode step of one row does: timed there.
            if self._has_head and tokens == 1:
                before_s = clock()
                for logits in executor.logits(hidden[:, -1]):
                    sample(logits, GREEDY, context + 1, counts)
                times.head.append(clock() - before_s)

        return run
