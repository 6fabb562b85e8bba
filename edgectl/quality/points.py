"""The points at which a model's quality is measured, and the channel of each of their runs. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from agent.errors import ConfigError
from planner.channel import MAX_SEED, MAX_STATES, Channel, ChannelState, Concealment, Granularity, Protection
from planner.types import BoundaryType, Codec, Quantization

SEED_STRIDE = 1 << 20
"""Runs of one seed have this many channels to themselves before the next seed's begin."""
MAX_RUNS = 1000
MAX_POINTS = 100_000
CLEAR_SHAPE = 1e6
"""Nakagami shape of a channel that loses nothing: its gains are 1 within a thousandth."""

Fading = Literal["none", "nakagami"]


@dataclass(frozen=True, slots=True, order=True)
class QualityPoint:
    """Where the model is split, and what the channel is like there."""

    split: int
    loss: float
    sigma: float = 0.0
    m: float | None = None
    """Nakagami shape that the gains are drawn with; None: the gain is 1."""
    snr_db: float | None = None

    @property
    def is_clean(self) -> bool:
        """Nothing is lost, nothing added, nothing scaled."""
        return self.loss == 0.0 and self.sigma == 0.0 and self.snr_db is None and self.m in (None, CLEAR_SHAPE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelKind:
    """What all points of a grid have in common. Raises ConfigError where a channel would be impossible."""

    granularity: Granularity = "element"
    packet_bytes: int = 1200
    interleaved: bool = False
    concealment: Concealment = "zero"
    protection: Protection = "none"
    equalised: bool = False
    """Under fading, the receiver has undone the gain: what is left of it is more noise where it was small."""

    def __post_init__(self) -> None:
        try:
            self.channel((ChannelState(),), 0)
        except ValueError as problem:
            raise ConfigError(str(problem)) from problem

    def channel(self, states: tuple[ChannelState, ...], seed: int) -> Channel:
        """A channel of this kind. Raises ValueError."""
        return Channel(
            states,
            seed=seed,
            granularity=self.granularity,
            packet_bytes=self.packet_bytes,
            interleaved=self.interleaved,
            concealment=self.concealment,
            protection=self.protection,
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether a receiver has to know what the hidden states usually are."""
        return self.concealment in ("mean", "lmmse") or self.protection != "none"

    @property
    def mitigation(self) -> str:
        """Concealment, and what else is done, in one word per measure."""
        more = (self.protection if self.protection != "none" else "", "interleaved" if self.interleaved else "")
        return "+".join(filter(None, (self.concealment, *more)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKind:
    """How the model is run."""

    quantization: Quantization = "fp32"
    block_size: int = 128
    boundary: BoundaryType = "fp16"
    codec: Codec | None = None
    """None: the boundary type."""

    @property
    def wire(self) -> Codec:
        return self.codec or self.boundary


def grid(
    splits: Iterable[int],
    losses: Iterable[float],
    sigmas: Iterable[float] = (0.0,),
    *,
    shapes: Iterable[float] | None = None,
    snrs_db: Iterable[float] | None = None,
    fading: Fading = "none",
) -> tuple[QualityPoint, ...]:
    """All combinations, by split. Nakagami shapes take the losses' place, SNRs the sigmas'.

    Raises ConfigError for a number that is none of what it should be, and for more than MAX_POINTS.
    """
    noises: list[tuple[float, float | None]] = [(_positive("--sigma", sigma), None) for sigma in sigmas]
    if snrs_db is not None:
        noises = [(0.0, _decibels(snr)) for snr in snrs_db]
    if shapes is not None:
        losses_of = [_loss_and_shape(_shape(m)) for m in shapes]
    else:
        losses_of = [(_probability(loss), _shape_for(loss) if fading == "nakagami" else None) for loss in losses]
    points = [
        QualityPoint(split, loss, sigma, m, snr)
        for split, (loss, m), (sigma, snr) in product(splits, losses_of, noises)
    ]
    points = sorted(set(points), key=lambda point: (point.split, point.loss, point.sigma, -(point.snr_db or 0.0)))
    if not 1 <= len(points) <= MAX_POINTS:
        raise ConfigError(f"{len(points)} points, 1 to {MAX_POINTS} can be measured")
    return tuple(points)


def _loss_and_shape(m: float) -> tuple[float, float | None]:
    from rl.channel import loss_probability

    return float(loss_probability(m)), m


def _shape_for(loss: float) -> float:
    """The Nakagami shape that loses this share. Raises ConfigError for more than the hardest fading loses."""
    from rl.channel import m_of_loss

    if loss == 0.0:
        return CLEAR_SHAPE
    try:
        return float(m_of_loss(loss))
    except ValueError as problem:
        raise ConfigError(f"--loss {loss:g} under fading: {problem}") from problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """How often a point is measured, and from which seed on."""

    count: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_RUNS:
            raise ConfigError(f"--runs {self.count}: 1 to {MAX_RUNS} are possible")
        if not 0 <= self.seed < MAX_SEED // SEED_STRIDE:
            raise ConfigError(f"--seed {self.seed}: 0 to {MAX_SEED // SEED_STRIDE - 1} are possible")

    def of(self, point: QualityPoint) -> range:
        """Runs of a point: a channel that does nothing gives the same every time, and is measured once."""
        return range(1 if point.is_clean else self.count)


def channel_of(point: QualityPoint, kind: ChannelKind, runs: Runs, run: int, tokens: int) -> Channel:
    """The channel of one run over a text of so many tokens. Runs of one number share a seed at all points: what is lost
    at a smaller loss is lost at a larger one as well, so points differ by less than their intervals say."""
    seed = runs.seed * SEED_STRIDE + run
    plan = kind.channel((ChannelState(loss=point.loss, sigma=point.sigma, snr_db=point.snr_db),), seed)
    if point.m is None:
        return plan
    from rl.channel import fading_channel

    # Another stream than the one that chooses what is lost.
    rng = np.random.default_rng([seed, 1])
    return fading_channel(
        point.m,
        min(tokens, MAX_STATES),
        rng,
        sigma=point.sigma,
        snr_db=point.snr_db,
        seed=seed,
        equalised=kind.equalised,
        plan=plan,
    )


def _probability(loss: float) -> float:
    if not 0.0 <= loss <= 1.0:
        raise ConfigError(f"--loss {loss:g} is no probability: 0 to 1")
    return loss


def _shape(m: float) -> float:
    if not 0.5 <= m <= CLEAR_SHAPE:
        raise ConfigError(f"--m {m:g}: a Nakagami distribution has 0.5 or more")
    return m


def _positive(name: str, value: float) -> float:
    if not 0.0 <= value < math.inf:
        raise ConfigError(f"{name} {value:g}: a finite number from 0 on is expected")
    return value


def _decibels(value: float) -> float:
    if not -200.0 <= value <= 200.0:
        raise ConfigError(f"--snr-db {value:g}: -200 to 200 are possible")
    return value
