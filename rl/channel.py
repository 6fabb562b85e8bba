"""The radio channel of "Adaptive Layer Splitting for Wireless LLM Inference" (arXiv 2406.02616), equations 3 to 5, and
what it leaves out: shapes that walk, losses in bursts, and packets.

Pure: whoever draws passes a generator. Gains are Nakagami-m; what comes in below a threshold is lost. What a channel
does to hidden states is `agent.compute.damage`'s to do, from the `Channel` that is drawn here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammainc, gammaincinv  # type: ignore[import-untyped]

from planner.channel import Channel, ChannelState
from rl.arrays import FloatArray, IntArray

LEAST_M, MOST_M = 0.5, 3.0
"""Half-Gaussian fading, and a channel that loses 1 in 100: the range that gives the authors' losses of 0.01 to 0.30."""
THRESHOLD_SQUARED = 0.15
"""h_th^2: with it and Omega = 1, m of 0.5 to 3 gives the losses that the authors' code draws."""
WALK_STEP = 0.15
"""Standard deviation of one step of m; from one end of its range to the other takes some 300 steps."""
_MOST_M_SOUGHT = 1e4
_HALVINGS = 80


def nakagami_gain(m: ArrayLike, omega: float, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """h >= 0 with E[h^2] = omega (equation 4); m = 1 is Rayleigh, m without bound no fading. Raises ValueError."""
    shape = _checked(m, omega)
    return cast(FloatArray, np.sqrt(rng.gamma(shape, omega / shape, size)))


def received_gain(
    m: ArrayLike,
    size: int | tuple[int, ...],
    rng: np.random.Generator,
    threshold_squared: float = THRESHOLD_SQUARED,
    omega: float = 1.0,
) -> FloatArray:
    """h where it is at least the threshold: of what is not lost. Drawn by inversion, one number each. Raises
    ValueError."""
    shape = _checked(m, omega)
    lost = loss_probability(shape, threshold_squared, omega)
    chance = lost + (1.0 - lost) * rng.random(size)
    return np.asarray(np.sqrt(gammaincinv(shape, chance) * omega / shape), np.float64)


def loss_probability(m: ArrayLike, threshold_squared: float = THRESHOLD_SQUARED, omega: float = 1.0) -> FloatArray:
    """P(h < h_th), equation 5. Raises ValueError."""
    shape = _checked(m, omega)
    return np.asarray(gammainc(shape, shape * threshold_squared / omega), np.float64)


def sampled_loss(
    m: float, count: int, rng: np.random.Generator, threshold_squared: float = THRESHOLD_SQUARED, omega: float = 1.0
) -> float:
    """The same by counting `count` gains. Raises ValueError."""
    return float(np.mean(np.square(nakagami_gain(m, omega, count, rng)) < threshold_squared))


def m_of_loss(loss: ArrayLike, threshold_squared: float = THRESHOLD_SQUARED, omega: float = 1.0) -> FloatArray:
    """The shape that loses so much: `loss_probability` the other way round. Raises ValueError for a loss of 0, which
    takes no fading at all, and for one that m = 0.5 does not reach."""
    wanted = np.asarray(loss, np.float64)
    most = float(loss_probability(LEAST_M, threshold_squared, omega))
    if threshold_squared >= omega:
        raise ValueError(f"threshold {threshold_squared} of mean square {omega}: loss grows with m there")
    if not np.all((wanted > 0.0) & (wanted <= most)):
        raise ValueError(f"loss {loss!r}: shapes of 0.5 or more lose more than 0 and at most {most:.4f}")
    low, high = np.full(wanted.shape, LEAST_M), np.full(wanted.shape, _MOST_M_SOUGHT)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        too_lossy = gammainc(middle, middle * threshold_squared / omega) > wanted
        low, high = np.where(too_lossy, middle, low), np.where(too_lossy, high, middle)
    return np.asarray(low, np.float64)


def noise_sigma(hidden: FloatArray, snr_db: float, omega: float = 1.0) -> FloatArray:
    """[tokens]: what sigma gives each token of `hidden` [tokens, H] that SNR, E[y^2] Omega / sigma^2. A fixed sigma
    is another SNR after every layer, because the residual stream grows with depth."""
    power = np.mean(np.square(hidden), axis=-1) * omega
    return np.asarray(np.sqrt(power / 10.0 ** (snr_db / 10.0)), np.float64)


def m_walk(
    start: float,
    steps: int,
    rng: np.random.Generator,
    step: float = WALK_STEP,
    m_range: tuple[float, float] = (LEAST_M, MOST_M),
) -> FloatArray:
    """[steps]: a Markov walk, m' = clip(m + N(0, step)), `start` first. Raises ValueError."""
    _checked([start, *m_range], 1.0)
    walk = np.empty(steps)
    m = float(np.clip(start, *m_range))
    for index, change in enumerate(step * rng.standard_normal(steps)):
        walk[index] = m
        m = float(np.clip(m + change, *m_range))
    return walk


@dataclass(frozen=True, slots=True, kw_only=True)
class GilbertElliott:
    """Losses in bursts: a good and a bad state, each with a loss of its own. Raises ValueError."""

    worsens: float
    """Probability per token that good becomes bad."""
    recovers: float
    """Probability per token that bad becomes good; a burst lasts 1 / recovers tokens on average."""
    good_loss: float = 0.0
    bad_loss: float = 1.0

    def __post_init__(self) -> None:
        if not all(0.0 <= p <= 1.0 for p in (self.worsens, self.recovers, self.good_loss, self.bad_loss)):
            raise ValueError(f"{self}: probabilities are 0 to 1")
        if self.worsens + self.recovers == 0.0:
            raise ValueError(f"{self}: one of the states is left now and then")

    @classmethod
    def of(cls, mean_loss: float, mean_burst: float) -> GilbertElliott:
        """Everything is lost in bursts of so many tokens on average, and nothing between them. Raises ValueError."""
        if not 0.0 <= mean_loss < 1.0 or not mean_burst >= 1.0:
            raise ValueError(f"mean loss {mean_loss}, bursts of {mean_burst}: 0 to less than 1, and 1 or more")
        recovers = 1.0 / mean_burst
        return cls(worsens=recovers * mean_loss / (1.0 - mean_loss), recovers=recovers)

    @property
    def bad_share(self) -> float:
        """Of all tokens."""
        return self.worsens / (self.worsens + self.recovers)

    @property
    def mean_loss(self) -> float:
        return self.bad_share * self.bad_loss + (1.0 - self.bad_share) * self.good_loss

    def losses(self, tokens: int, rng: np.random.Generator) -> FloatArray:
        """[tokens]: the loss that holds at each; it begins as the chain is on average."""
        chances = rng.random(tokens)
        is_bad = np.empty(tokens, np.bool_)
        bad = bool(rng.random() < self.bad_share)
        for index, chance in enumerate(chances):
            is_bad[index] = bad
            bad = bool(chance >= self.recovers) if bad else bool(chance < self.worsens)
        return np.where(is_bad, self.bad_loss, self.good_loss)


def packet_of_element(count: int, per_packet: int, interleaved: bool) -> IntArray:
    """[count]: which of the fewest packets that hold them each element travels in; interleaved: neighbours in different
    ones. Raises ValueError."""
    if count < 1 or per_packet < 1:
        raise ValueError(f"{count} elements, {per_packet} per packet: at least 1 each")
    packets = -(-count // per_packet)
    element = np.arange(count)
    return element % packets if interleaved else element * packets // count


def fading_channel(
    m: ArrayLike,
    tokens: int,
    rng: np.random.Generator,
    *,
    sigma: float = 0.0,
    snr_db: float | None = None,
    seed: int = 0,
    coherence_tokens: int = 1,
    equalised: bool = False,
    plan: Channel | None = None,
) -> Channel:
    """Equation 3 whole: y' = h y + w over `tokens` states, with a gain of what is received, loss p(m), and a fixed
    sigma, or a mean SNR E[y^2] Omega / sigma^2 that moves with h^2. `m` is a number, or [tokens] such as `m_walk`
    gives. Equalised: the receiver divides by h, so sigma becomes sigma / h. `plan` says what packets and concealment
    are. Raises ValueError."""
    shapes = np.broadcast_to(np.asarray(m, np.float64), (tokens,))
    gains = received_gain(shapes, tokens, rng)
    losses = loss_probability(shapes)
    states = tuple(
        ChannelState(
            loss=float(loss),
            sigma=sigma / float(gain) if equalised else sigma,
            gain=1.0 if equalised else float(gain),
            snr_db=None if snr_db is None else snr_db + 20.0 * math.log10(gain),
            m=float(shape),
        )
        for loss, gain, shape in zip(losses, gains, shapes, strict=True)
    )
    like = Channel(states) if plan is None else plan
    return Channel(
        states,
        seed,
        coherence_tokens,
        like.granularity,
        like.packet_bytes,
        like.interleaved,
        like.concealment,
        like.protection,
    )


def bursty_channel(bursts: GilbertElliott, tokens: int, rng: np.random.Generator, *, seed: int = 0) -> Channel:
    """Gilbert-Elliott losses, one state per token. Raises ValueError."""
    return Channel(tuple(ChannelState(loss=float(loss)) for loss in bursts.losses(tokens, rng)), seed)


def _checked(m: ArrayLike, omega: float) -> FloatArray:
    shape = np.asarray(m, np.float64)
    if not np.all(shape >= 0.5) or not np.all(np.isfinite(shape)):
        raise ValueError(f"m {shape}: a Nakagami distribution has 0.5 or more")
    if not 0.0 < omega < np.inf:
        raise ValueError(f"omega {omega}: a mean square is more than 0")
    return shape
