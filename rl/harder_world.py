"""A world closer to a real radio: fading with a trend, an SNR that walks, losses that are only counted, and moves that
cost what a handover of keys and values costs.

What is observed are estimates: the share of some hundred packets that were lost, an SNR as radios report it. So the
present observation is not all there is to know, and a policy that remembers can tell a fade that deepens from a bad
count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl.arrays import FloatArray, IntArray
from rl.channel import LEAST_M, MOST_M, loss_probability, m_of_loss
from rl.controller import Observation
from rl.optimal import Optimum
from rl.quality import Gain
from rl.reward import RewardWeights, split_reward
from rl.rollout import Decide
from rl.split_costs import SplitCosts
from rl.split_world import ACTIONS_9, SplitWorld, shape_of

HARDER_WEIGHTS = RewardWeights(latency_per_ms=0.002, energy_per_j=0.02)
"""A layer on the source costs 0.1 of load, as in the paper, and about a tenth of that in time and energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Radio:
    """How a link changes from one decision to the next. Raises ValueError."""

    m_range: tuple[float, float] = (LEAST_M, MOST_M)
    trend_keeps: float = 0.9
    """Of the last change of m in the next one: fades take some ten decisions to turn."""
    trend_step: float = 0.04
    """Standard deviation of what is new in it."""
    snr_range_db: tuple[float, float] = (0.0, 20.0)
    snr_keeps: float = 0.95
    """Of the distance from the middle of the range."""
    snr_step_db: float = 1.5
    sigma_at_0_db: float = 0.0
    """Noise on the hidden states at an SNR of 0 dB, falling by 20 dB per factor of ten; 0: SNR changes goodput only."""
    bandwidth_hz: float = 20e6
    """Goodput is Shannon's: bandwidth times log2(1 + SNR)."""
    counted_packets: int = 144
    """That an estimate of the loss rests on: 16 tokens of 9 packets."""
    snr_error_db: float = 4.0
    """Standard deviation of an SNR as it is reported, within what 3GPP TS 38.133 allows a phone; what sigma and goodput
    are taken to be follows from it."""

    def __post_init__(self) -> None:
        for name in ("m_range", "snr_range_db"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} goes from {low} to {high}")
        if self.m_range[0] < LEAST_M or not 0.0 <= self.trend_keeps < 1.0 or not 0.0 <= self.snr_keeps < 1.0:
            raise ValueError(f"{self}: m is 0.5 or more, what is kept less than everything")
        if min(self.trend_step, self.snr_step_db, self.sigma_at_0_db, self.snr_error_db) < 0.0:
            raise ValueError(f"{self}: standard deviations are 0 or more")
        if self.counted_packets < 1 or not self.bandwidth_hz > 0.0:
            raise ValueError(f"{self}: at least one packet and some bandwidth")

    @property
    def most_trend(self) -> float:
        """Four standard deviations of the trend in the long run."""
        return max(4.0 * self.trend_step / math.sqrt(1.0 - self.trend_keeps**2), 1e-9)

    def sigma(self, snr_db: FloatArray) -> FloatArray:
        return np.asarray(self.sigma_at_0_db * 10.0 ** (-snr_db / 20.0), np.float64)

    def bytes_per_s(self, snr_db: FloatArray) -> FloatArray:
        return np.asarray(self.bandwidth_hz / 8.0 * np.log2(1.0 + 10.0 ** (snr_db / 10.0)), np.float64)

    def snr_db(self, bytes_per_s: float) -> float:
        """The other way round, within the range."""
        ratio = 2.0 ** min(8.0 * bytes_per_s / self.bandwidth_hz, 100.0) - 1.0
        return float(np.clip(10.0 * math.log10(max(ratio, 1e-20)), *self.snr_range_db))


class HarderWorld(SplitWorld):
    """Channel: (m, trend, SNR in dB, counted loss, reported SNR). A decision every `interval_tokens` tokens of a
    session that holds `context_tokens`; a move sends the keys and values of its layers over the same link, and what
    that takes is spread over the interval's tokens. Raises ValueError."""

    observed = ("loss", "sigma", "goodput_bytes_per_s", "split")
    quadrature = (7, 5, 1, 1)
    moves_change_channel = False
    goes_on = True

    def __init__(
        self,
        gain: Gain,
        *,
        radio: Radio | None = None,
        costs: SplitCosts | None = None,
        weights: RewardWeights = HARDER_WEIGHTS,
        actions: tuple[int, ...] = ACTIONS_9,
        splits: Sequence[int] = tuple(range(1, 11)),
        horizon: int = 20,
        frames: int = 1,
        interval_tokens: int = 16,
        context_tokens: float = 256.0,
    ) -> None:
        self.gain, self.weights, self.actions, self.splits = gain, weights, actions, tuple(splits)
        self.radio = Radio() if radio is None else radio
        self.costs = SplitCosts.of_edgeshard(self.splits) if costs is None else costs
        if self.costs.splits != self.splits:
            raise ValueError(f"costs of splits {self.costs.splits} for splits {self.splits}")
        if self.costs.source_j is None and weights.energy_per_j:
            raise ValueError("energy has a weight, and the source's power is not known: energy_per_j = 0 leaves it out")
        self.horizon, self.frames = horizon, frames
        self.interval_tokens, self.context_tokens = interval_tokens, context_tokens
        low_snr, high_snr = (np.array(snr) for snr in self.radio.snr_range_db)
        self.observed_low = (
            *(0.0, float(self.radio.sigma(high_snr))),
            *(float(self.radio.bytes_per_s(low_snr)), float(self.splits[0])),
        )
        self.observed_high = (
            *(1.2 * float(loss_probability(self.radio.m_range[0])), float(self.radio.sigma(low_snr))),
            *(float(self.radio.bytes_per_s(high_snr)), float(self.splits[-1])),
        )

    def draw_channel(self, rng: np.random.Generator, n: int) -> FloatArray:
        radio = self.radio
        m = rng.uniform(*radio.m_range, n)
        trend = np.clip(radio.most_trend / 4.0 * rng.standard_normal(n), -radio.most_trend, radio.most_trend)
        snr = rng.uniform(*radio.snr_range_db, n)
        seen = rng.standard_normal((2, n))
        return np.stack([m, trend, snr, self._counted(m, seen[0]), self._reported(snr, seen[1])], axis=1)

    def draw_place(self, rng: np.random.Generator, n: int) -> IntArray:
        return rng.integers(0, len(self.splits), n)

    def channel_after(self, channel: FloatArray, moved: IntArray, noise: FloatArray) -> FloatArray:
        radio = self.radio
        trend = radio.trend_keeps * channel[:, 1] + radio.trend_step * noise[:, 0]
        trend = np.clip(trend, -radio.most_trend, radio.most_trend)
        m = channel[:, 0] + trend
        inside = np.clip(m, *radio.m_range)
        # At the end of its range m turns: what led out of it leads back.
        trend = np.where(m == inside, trend, -trend)
        middle = sum(radio.snr_range_db) / 2.0
        snr = middle + radio.snr_keeps * (channel[:, 2] - middle) + radio.snr_step_db * noise[:, 1]
        snr = np.clip(snr, *radio.snr_range_db)
        counted, reported = self._counted(inside, noise[:, 2]), self._reported(snr, noise[:, 3])
        return np.stack([inside, trend, snr, counted, reported], axis=1)

    def _counted(self, m: FloatArray, noise: FloatArray) -> FloatArray:
        """Share of the packets that were lost; normal for binomial, so that it takes one number."""
        loss = loss_probability(m)
        counted = loss + np.sqrt(loss * (1.0 - loss) / self.radio.counted_packets) * noise
        return np.clip(counted, 0.0, 1.0)

    def _reported(self, snr_db: FloatArray, noise: FloatArray) -> FloatArray:
        return np.clip(snr_db + self.radio.snr_error_db * noise, *self.radio.snr_range_db)

    def axes(self, points: int) -> tuple[FloatArray, ...]:
        radio = self.radio
        return (
            np.linspace(*radio.m_range, points // 4 + 1),
            np.linspace(-radio.most_trend, radio.most_trend, points // 20 * 2 + 1),
            np.linspace(*radio.snr_range_db, points // 30 * 2 + 1),
            np.zeros(1),
            np.zeros(1),
        )

    def rewards(self, channel: FloatArray, before: IntArray, after: IntArray) -> FloatArray:
        layers, snr = self.layers(after), channel[:, 2]
        gain = self.gain(loss_probability(channel[:, 0]), layers, self.radio.sigma(snr))
        bytes_per_s = self.radio.bytes_per_s(snr)
        moved = self.costs.move_bytes(layers - self.layers(before), self.context_tokens)
        token_ms = self.costs.token_ms(after, bytes_per_s) + 1e3 * moved / bytes_per_s / self.interval_tokens
        energy_j = 0.0 if self.costs.source_j is None else np.array(self.costs.source_j)[after]
        paid = self.weights.latency_per_ms * token_ms + self.weights.energy_per_j * energy_j
        return np.asarray(split_reward(self.weights, gain, layers, self.splits[-1]) - paid, np.float64)

    def observe(self, channel: FloatArray, place: IntArray, rng: np.random.Generator) -> FloatArray:
        counted, reported = channel[:, 3], channel[:, 4]
        sigma, bytes_per_s = self.radio.sigma(reported), self.radio.bytes_per_s(reported)
        return np.stack([counted, sigma, bytes_per_s, self.layers(place)], axis=1)

    def channel_of(self, observation: Observation) -> FloatArray | None:
        """Without a trend, which nothing that is seen at once tells of."""
        m = shape_of(observation, self.radio.m_range)
        if m is None:
            return None
        if observation.goodput_bytes_per_s is None:
            snr = sum(self.radio.snr_range_db) / 2.0
        else:
            snr = self.radio.snr_db(observation.goodput_bytes_per_s)
        return np.array([m, 0.0, snr, observation.loss or 0.0, snr])

    def measured(self, channel: FloatArray, place: IntArray) -> list[Observation]:
        """Loss as counted and SNR as reported, not as they are."""
        sigmas, rates = self.radio.sigma(channel[:, 4]), self.radio.bytes_per_s(channel[:, 4])
        return [
            Observation(self.splits[at], loss=float(loss), sigma=float(sigma), goodput_bytes_per_s=float(rate))
            for at, loss, sigma, rate in zip(place.tolist(), channel[:, 3], sigmas, rates, strict=True)
        ]


def planning_ahead(optimum: Optimum, keep: float) -> Decide:
    """The optimum's plan from where the channel is taken to be: observations averaged over the world's `frames`, each
    older one weighing `keep` times the next; 0: the newest alone. What memory is worth without learning."""

    def decide(world: SplitWorld, seen: FloatArray) -> IntArray:
        assert isinstance(world, HarderWorld), "the harder world alone is seen in part"
        radio, now = world.radio, world.episodes
        frames = seen.reshape(len(seen), world.frames, -1)
        shares = keep ** np.arange(world.frames, dtype=np.float64)
        loss = frames[:, :, 0] @ (shares / shares.sum())
        rate = np.clip(8.0 * frames[:, :, 2] / radio.bandwidth_hz, 1e-9, 100.0)
        snr = 10.0 * np.log10(2.0**rate - 1.0) @ (shares / shares.sum())
        least, most = (float(loss_probability(m)) for m in reversed(radio.m_range))
        m = m_of_loss(np.clip(loss, least, most))
        channel = np.stack([m, np.zeros_like(m), snr, loss, snr], axis=1)
        actions: IntArray = np.argmax(optimum.worth(channel, now.place, world.horizon - now.steps), axis=1)
        return actions

    return decide
