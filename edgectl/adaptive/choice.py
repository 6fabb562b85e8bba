"""What a person asks of splits that move: the file, how it is used, and how eagerly. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgectl.adaptive.guards import Limits

ControllerName = Literal["policy", "table", "planner", "static"]
"""Trained network, look-up in a quality table, re-planning with latencies, or splits that stay."""

MOST_TOKENS = 1 << 20
"""Of an interval or a dwell: no context is longer."""
MOST_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class AdaptiveChoice:
    """What a person asked for."""

    path: Path
    kind: ControllerName | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises ValueError naming the flag."""
        limits = self.limits
        if not 1 <= limits.interval_tokens <= MOST_TOKENS:
            raise ValueError(f"--decide-every {limits.interval_tokens} is outside 1 to {MOST_TOKENS} tokens")
        if not 0 <= limits.dwell_tokens <= MOST_TOKENS:
            raise ValueError(f"--dwell {limits.dwell_tokens} is outside 0 to {MOST_TOKENS} tokens")
        if not 0 <= limits.move_weight <= MOST_WEIGHT:
            raise ValueError(f"--move-weight {limits.move_weight} is outside 0 to {MOST_WEIGHT:g}")
