"""What a decision is worth: quality gained, less what the device, the wait and the battery pay for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.arrays import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """Of the terms of a reward; the authors' surrogate run by default (they have 10.5 on true perplexities). Raises
    ValueError."""

    quality: float = 10.0
    """alpha: of (PPL_0 - PPL) / PPL_0."""
    load: float = 1.0
    """beta: of the share of the layers, up to the last split, that the source need not run."""
    latency_per_ms: float = 0.0
    """Charged per millisecond of a token."""
    energy_per_j: float = 0.0
    """Charged per joule of a token on the source."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.quality, self.load, self.latency_per_ms, self.energy_per_j)):
            raise ValueError(f"{self}: weights are finite numbers")


def split_reward(weights: RewardWeights, gain: FloatArray, split: FloatArray, last_split: float) -> FloatArray:
    """alpha gain + beta (l_max - l) / l_max, after each move: "Adaptive Layer Splitting" (arXiv 2406.02616), equation 8
    as its authors' code weighs it."""
    return weights.quality * gain + weights.load * (last_split - split) / last_split
