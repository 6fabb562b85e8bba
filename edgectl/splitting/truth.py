"""Rewards that are measured: a perplexity per step, through the real executor, as the authors trained before they had
a surrogate."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from edgectl.quality.points import ChannelKind, ModelKind, QualityPoint, Runs, channel_of

if TYPE_CHECKING:
    from agent.compute.perplexity import PerplexityMeter
    from rl.arrays import FloatArray
    from rl.quality import QualityTable

LEAST_LOSS = 1e-6


class MeasuredGain:
    """Satisfies `rl.quality.Gain`: one perplexity is measured per element, with a new seed each time.

    What it is relative to, the mean over splits at the same loss and sigma, is read off the table, so that rewards are
    those of the other runs and each costs one measurement.
    """

    def __init__(self, meter: PerplexityMeter, tokens: int, table: QualityTable) -> None:
        self._meter = meter
        self._tokens = tokens
        self._table = table
        self.evaluations = 0
        self.seconds = 0.0

    @classmethod
    def load(cls, model: str, tokens: int, table: QualityTable) -> MeasuredGain:
        """The model of the study, in this process. Raises ConfigError, AgentError and PlannerError."""
        from edgectl.quality.perplexity import MeasuredText, find_subject, load_meter

        subject = find_subject(model, ModelKind(), MeasuredText(tokens=tokens))
        return cls(load_meter(subject, table.splits), subject.text.tokens, table)

    def __call__(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        others = np.stack([self._table.ppl(loss, float(each), sigma) for each in self._table.splits])
        measured = np.array([self._measure(*map(float, each)) for each in zip(loss, split, sigma, strict=True)])
        result: FloatArray = np.mean((others - measured) / others, axis=0)
        return result

    def _measure(self, loss: float, split: float, sigma: float) -> float:
        start = perf_counter()
        point = QualityPoint(round(split), loss, sigma, shape_of_loss(loss))
        channel = channel_of(point, ChannelKind(), Runs(count=1, seed=1 + self.evaluations), 0, self._tokens)
        found = self._meter.at(point.split, channel)
        self.seconds += perf_counter() - start
        self.evaluations += 1
        return found


def shape_of_loss(loss: float) -> float:
    """The Nakagami shape that loses this share; the mildest fading there is for what loses next to nothing."""
    from rl.channel import LEAST_M, loss_probability, m_of_loss

    hardest = float(loss_probability(LEAST_M))
    return float(m_of_loss(np.clip(loss, LEAST_LOSS, hardest)))
