"""Lists of numbers as options are given them: `1,2,4`, `0.5..3`."""

from __future__ import annotations

import math
from typing import TypeVar

from agent.errors import ConfigError

Number = TypeVar("Number", int, float)

RANGE_STEPS = 6
"""Numbers that a..b stands for: of integers all, where they are no more than these."""
MAX_NUMBERS = 1000


def numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """Numbers with commas between them; a..b is `RANGE_STEPS` of them from a to b, evenly apart.

    Raises ConfigError naming the option and what is no number.
    """
    found: list[Number] = []
    for part in text.split(","):
        ends = part.split("..")
        try:
            values = [kind(end.strip()) for end in ends]
        except (ValueError, OverflowError):
            raise ConfigError(f"{option} {text}: {part.strip()!r} is no number") from None
        if not all(map(math.isfinite, values)) or len(values) > 2:
            raise ConfigError(f"{option} {text}: {part.strip()!r} is no number")
        found += values if len(values) == 1 else _between(values[0], values[1], kind)
    if len(found) > MAX_NUMBERS:
        raise ConfigError(f"{option}: {len(found)} numbers, at most {MAX_NUMBERS}")
    return tuple(dict.fromkeys(found))


def _between(first: Number, last: Number, kind: type[Number]) -> list[Number]:
    steps = RANGE_STEPS if kind is float else max(1, min(RANGE_STEPS, int(abs(last - first)) + 1))
    if steps == 1:
        return [first]
    places = (first + (last - first) * step / (steps - 1) for step in range(steps))
    return [kind(round(place)) if kind is int else kind(round(place, 12)) for place in places]
