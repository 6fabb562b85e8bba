"""What a load consists of: when sessions arrive, how long prompts and answers are, who hangs up. Pure and seeded.

Session `n` of a load depends on the seed and `n` alone: not on when it is sent nor on how those before it went, so two
runs of one load offer the same sessions to different clusters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Arrivals = Literal["poisson", "constant"]

MOST_TOKENS = 1 << 20
"""Of a prompt or an answer; more is a slip of the keyboard."""
LOWEST_ID = 64
"""Prompts are drawn from here up: control tokens have small ids."""
MOST_SIGMA = 4.0
FORMS = "N, uniform:FROM:TO or lognormal:MEDIAN:SIGMA"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of numbers of tokens. `fixed`: low. `uniform`: low to high, both among them.

    `lognormal`: median `low`, sigma of the logarithm; `high` is where it is cut, and so is 1.
    """

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int
    sigma: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """`128`, `uniform:16:256` or `lognormal:128:0.5`. Raises ValueError with the way out."""
        kind, *numbers = text.split(":") if ":" in text else ("fixed", text)
        try:
            if kind == "fixed" and len(numbers) == 1:
                return cls("fixed", _tokens(numbers[0]), _tokens(numbers[0]))
            if kind == "uniform" and len(numbers) == 2:
                low, high = _tokens(numbers[0]), _tokens(numbers[1])
                if low > high:
                    raise ValueError(f"{low} is more than {high}")
                return cls("uniform", low, high)
            if kind == "lognormal" and len(numbers) == 2:
                sigma = float(numbers[1])
                if not 0 < sigma <= MOST_SIGMA:
                    raise ValueError(f"sigma {numbers[1]} is not above 0 and at most {MOST_SIGMA:g}")
                return cls("lognormal", _tokens(numbers[0]), MOST_TOKENS, sigma)
        except ValueError as problem:
            raise ValueError(f"{text!r}: {problem}; expected {FORMS}") from problem
        raise ValueError(f"{text!r}: expected {FORMS}")

    @property
    def most(self) -> int | None:
        """The longest that must fit the context as it is; None where the tail is cut to fit."""
        return None if self.kind == "lognormal" else self.high

    def draw(self, chance: random.Random, room: int) -> int:
        """One length from 1 to `room`; longer ones become `room`."""
        if self.kind == "fixed":
            drawn = self.low
        elif self.kind == "uniform":
            drawn = chance.randint(self.low, self.high)
        else:
            drawn = round(math.exp(math.log(self.low) + self.sigma * chance.gauss(0.0, 1.0)))
        return max(1, min(drawn, room, MOST_TOKENS))

    def __str__(self) -> str:
        if self.kind == "fixed":
            return str(self.low)
        return f"{self.kind}:{self.low}:{self.high if self.kind == 'uniform' else f'{self.sigma:g}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is offered. Exactly one of `rate_per_s` (open loop) and `concurrency` (closed loop) is set.

    Raises ValueError when a session could not fit `context`, or a number is out of its range.
    """

    prompt: Lengths
    output: Lengths
    context: int
    """Positions a session has: prompt and answer together."""
    seed: int = 0
    rate_per_s: float | None = None
    arrivals: Arrivals = "poisson"
    concurrency: int | None = None
    vocabulary: int = 1000
    """Prompts are made of ids below this."""
    cancel_share: float = 0.0
    """Share of sessions whose client hangs up half-way."""
    keys: int = 1
    """API keys that take turns."""

    def __post_init__(self) -> None:
        if (self.rate_per_s is None) == (self.concurrency is None):
            raise ValueError("give either a rate (open loop) or a concurrency (closed loop)")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < math.inf:
            raise ValueError(f"a rate of {self.rate_per_s:g} sessions/s is not above 0")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"a concurrency of {self.concurrency} is not at least 1")
        if not 0 <= self.cancel_share <= 1:
            raise ValueError(f"a share of {self.cancel_share:g} that hangs up is outside 0 to 1")
        if self.vocabulary <= LOWEST_ID:
            raise ValueError(f"a vocabulary of {self.vocabulary} ids is not above {LOWEST_ID}")
        longest = (self.prompt.most or 1) + (self.output.most or 1)
        if longest > self.context:
            raise ValueError(
                f"prompts of {self.prompt} and answers of {self.output} tokens take up to {longest} positions, "
                f"and the context has {self.context}"
            )

    @property
    def is_open(self) -> bool:
        """Sessions arrive when they arrive, whether or not others have ended."""
        return self.rate_per_s is not None


@dataclass(frozen=True, slots=True)
class Order:
    """One session to ask for."""

    number: int
    key: int
    """Which of the API keys."""
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    hang_up_after: int | None
    """The client goes away after this many tokens (at least 1, before the last)."""


def order_of(load: Load, number: int) -> Order:
    """The session `number` of a load."""
    chance = random.Random(f"edgectl load {load.seed} session {number}")
    # What is certain to be short leaves its room to the other.
    output = load.output.draw(chance, load.context - (load.prompt.most or 1))
    prompt = load.prompt.draw(chance, load.context - output)
    ids = tuple(chance.choices(range(LOWEST_ID, load.vocabulary), k=prompt))
    leaves = chance.random() < load.cancel_share and output > 1
    return Order(
        number,
        number % load.keys,
        ids,
        output,
        seed=chance.getrandbits(31),
        hang_up_after=chance.randrange(1, output) if leaves else None,
    )


def arrivals_s(load: Load) -> Iterator[float]:
    """When the sessions of an open loop arrive, in seconds since its begin, without an end; the first at 0.

    Poisson: independent exponential gaps of mean 1/rate. Constant: every gap is the mean one.
    """
    if load.rate_per_s is None:
        raise ValueError("a closed loop has no arrivals of its own")
    chance = random.Random(f"edgectl load {load.seed} arrivals")
    at_s = 0.0
    while True:
        yield at_s
        at_s += chance.expovariate(load.rate_per_s) if load.arrivals == "poisson" else 1 / load.rate_per_s


def _tokens(text: str) -> int:
    count = int(text)
    if not 1 <= count <= MOST_TOKENS:
        raise ValueError(f"{count} is outside 1 to {MOST_TOKENS}")
    return count
