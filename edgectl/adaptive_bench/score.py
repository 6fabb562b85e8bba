"""What a controller's splits were worth: perplexity of a fixed text under the very schedule that its session had.

Texts differ in how hard they are, so every schedule is scored on the same one; a session's own text would be another
for every controller. The text is cut into segments as long as the trace; each of them suffers the whole schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from agent.compute.executor import Executor
from agent.compute.perplexity import PerplexityMeter
from agent.compute.receiver import Receiver
from edgectl.adaptive_bench.damage_replay import Schedule
from planner.channel import Channel
from planner.types import Codec
from rl.arrays import IntArray
from rl.reward import RewardWeights


@dataclass(frozen=True, slots=True)
class Quality:
    """Perplexity of a text under one schedule."""

    ppl: float
    segments: tuple[float, ...]
    """Of each segment: their spread is the text's."""


@dataclass(frozen=True, slots=True)
class Offline:
    """What schedules are run and scored with in this process."""

    executor: Executor
    """All layers, cut at every split."""
    receiver: Receiver
    """What the device behind the radio knows of the model."""
    windows: IntArray
    """Of a text [n, s]."""
    segment: int
    """How many windows are as long as a session."""


class Scorer:
    """One text, one channel, one model with all its layers here."""

    def __init__(self, offline: Offline, channel: Channel | None, codec: Codec) -> None:
        """Raises ValueError where there are fewer windows than a segment has."""
        windows, segment = offline.windows, offline.segment
        if not 1 <= segment <= len(windows):
            raise ValueError(f"{len(windows)} windows in segments of {segment}: one at least is expected")
        count = len(windows) // segment
        self._channel = channel
        self._meters = [
            PerplexityMeter(
                offline.executor, windows[number * segment : (number + 1) * segment], codec, offline.receiver
            )
            for number in range(count)
        ]
        self.positions = segment * int(windows.shape[1])
        """Of the schedule, that count."""

    def clean(self) -> Quality:
        """Without a channel; every split gives the same."""
        return _quality([meter.clean() for meter in self._meters])

    def under(self, schedule: Schedule) -> Quality:
        """Raises ValueError for a schedule that is none, or a split without a cut."""
        if self._channel is None:
            return self.clean()
        within = tuple(entry for entry in schedule if entry[0] < self.positions)
        return _quality([meter.scheduled(within, self._channel) for meter in self._meters])


def _quality(segments: Sequence[float]) -> Quality:
    """Segments have the same number of tokens, so the mean of their logarithms is that of all tokens."""
    finite = all(math.isfinite(ppl) for ppl in segments)
    return Quality(math.exp(fmean(map(math.log, segments))) if finite else math.nan, tuple(segments))


def mean_split(schedule: Schedule, positions: int) -> float:
    """Layers the source runs per token, on average over the first positions. Raises ValueError for none of them."""
    if positions < 1:
        raise ValueError(f"{positions} positions: a mean has one at least")
    ends = [*(start for start, _ in schedule[1:]), positions]
    total = sum(split * max(0, min(end, positions) - start) for (start, split), end in zip(schedule, ends, strict=True))
    return total / positions


def moves_of(schedule: Schedule) -> int:
    """How often the split changed."""
    return len(schedule) - 1


def reward(ppl: float, statics: Mapping[int, float], split: float, weights: RewardWeights) -> float:
    """What learners are paid, over a whole run: alpha times the gain over a split drawn evenly from the statics, plus
    beta times what the source need not run. NaN where the perplexity is no number; of statics those that are none are
    left out. Raises ValueError where no static is left."""
    others = [other for other in statics.values() if math.isfinite(other)]
    if not others:
        raise ValueError("no split that stays has a perplexity to hold a gain against")
    gain = fmean((other - ppl) / other for other in others)
    last = max(statics)
    return weights.quality * gain + weights.load * (last - split) / last
