"""Fitting surrogates, and judging them on points they have not seen. Pure; gradients by hand, in float64.

The networks have a few thousand weights and the grids a few hundred points: the whole grid is one batch, and where a
smooth network is wanted L-BFGS is done before a framework is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]

from rl.arrays import FloatArray, IntArray
from rl.dense import Activation, Dense, activated
from rl.quality import QualityTable
from rl.surrogate import BadSurrogate, Form, Scores, Surrogate

LEAST_POINTS = 6
"""Below that there is nothing to hold out."""


@dataclass(frozen=True, slots=True)
class SurrogateSettings:
    """What is fitted, and how."""

    name: str
    form: Form
    hidden: tuple[int, ...]
    activation: Activation
    normalised: bool
    """Inputs and target with mean 0 and variance 1; the authors take both as they are."""
    optimiser: Literal["adam", "lbfgs"]
    steps: int
    learning_rate: float = 1e-3
    decay: float = 0.0
    """Weight of half the squared weights beside the mean squared error."""
    members: int = 1
    """Networks that begin at different weights and are averaged."""


AUTHORS = SurrogateSettings("authors", "gain", (128, 128), "relu", False, "adam", 3000)
"""2-128-128-1 with ReLU on the raw numbers, as released with arXiv 2406.02616; optimiser and steps are ours."""
SMOOTH_GAIN = SurrogateSettings("smooth-gain", "gain", (32, 32), "tanh", True, "lbfgs", 400, decay=1e-4, members=3)
SMOOTH_PPL = SurrogateSettings("smooth-ppl", "log_ppl", (32, 32), "tanh", True, "lbfgs", 400, decay=1e-4, members=3)
CANDIDATES = (AUTHORS, SMOOTH_GAIN, SMOOTH_PPL)


@dataclass(frozen=True, eq=False)
class Points:
    """What was measured, one entry per point of a grid. Raises BadSurrogate."""

    rows: FloatArray
    """(n, 3): loss, split, sigma."""
    gain: FloatArray
    """(n,)"""
    ppl: FloatArray | None
    """(n,); None: only gains are known, as of a published surface."""
    splits: tuple[int, ...]
    model: str = ""
    digest: str = ""
    num_layers: int = field(default=0)
    left_out: int = 0
    """Points without a number, which nothing can be fitted to."""

    def __post_init__(self) -> None:
        if len(self.rows) < LEAST_POINTS:
            raise BadSurrogate(f"surrogate: {len(self.rows)} points with a number, at least {LEAST_POINTS} are needed")


def points_of(table: QualityTable) -> Points:
    """A table's points. The gain of one is over a split drawn evenly from those with a number beside it."""
    good = [record for record in table.records if record.finite_runs]
    rows = np.array([[record.loss, record.split, record.sigma] for record in good], np.float64).reshape(-1, 3)
    ppl = np.array([record.ppl_mean for record in good])
    beside = (rows[:, None, 0] == rows[None, :, 0]) & (rows[:, None, 2] == rows[None, :, 2])
    gain = 1.0 - ppl * (beside @ (1.0 / ppl)) / beside.sum(axis=1) if good else ppl
    left_out = len(table.records) - len(good)
    return Points(rows, gain, ppl, table.splits, table.model, table.digest, table.num_layers, left_out)


def fit(points: Points, settings: SurrogateSettings, seed: int = 0, only: IntArray | None = None) -> Surrogate:
    """A surrogate of the points, or of those at the indices `only`; the same seed gives the same.

    Raises BadSurrogate where perplexities are wanted and only gains are known.
    """
    if settings.form == "log_ppl" and points.ppl is None:
        raise BadSurrogate("surrogate: these points have no perplexities, only gains")
    chosen = np.arange(len(points.rows)) if only is None else only
    rows = points.rows[chosen]
    target = points.gain[chosen] if points.ppl is None or settings.form == "gain" else np.log(points.ppl[chosen])
    centre, scale = rows.mean(axis=0), rows.std(axis=0)
    target_centre, target_scale = float(target.mean()), float(target.std()) or 1.0
    if not settings.normalised:
        centre, scale = np.zeros(3), (scale > 0.0).astype(np.float64)
        target_centre, target_scale = 0.0, 1.0
    scaled = np.divide(rows - centre, scale, out=np.zeros_like(rows), where=scale != 0.0)
    members = [
        _fitted(scaled, (target - target_centre) / target_scale, settings, np.random.default_rng([seed, member]))
        for member in range(settings.members)
    ]
    return Surrogate(
        model=points.model,
        digest=points.digest,
        num_layers=points.num_layers,
        form=settings.form,
        splits=points.splits,
        centre=centre,
        scale=scale,
        target_centre=target_centre,
        target_scale=target_scale,
        layers=averaged(members),
        notes={"settings": settings.name, "points": len(rows), "left_out": points.left_out, "seed": seed},
    )


@dataclass(frozen=True, slots=True)
class Validation:
    """Predictions of points by surrogates that have not seen them."""

    settings: str
    folds: int
    gain: Scores
    ppl: Scores | None
    """None of a surrogate of gains."""


def cross_validate(points: Points, settings: SurrogateSettings, folds: int = 8, seed: int = 0) -> Validation:
    """k-fold: each point is predicted once, by the surrogate of the folds it is not in. Raises BadSurrogate."""
    count = len(points.rows)
    if not 2 <= folds <= count:
        raise BadSurrogate(f"surrogate: {folds} folds of {count} points, 2 to {count} are possible")
    order = np.random.default_rng(seed).permutation(count)
    gain = np.empty(count)
    ppl = np.empty(count)
    for held_out in np.array_split(order, folds):
        fitted = fit(points, settings, seed, np.setdiff1d(order, held_out))
        loss, split, sigma = points.rows[held_out].T
        gain[held_out] = fitted(loss, split, sigma)
        if settings.form == "log_ppl":
            ppl[held_out] = fitted.ppl(loss, split, sigma)
    ppl_scores = None
    if settings.form == "log_ppl" and points.ppl is not None:
        ppl_scores = Scores.of(ppl, points.ppl)
    return Validation(settings.name, folds, Scores.of(gain, points.gain), ppl_scores)


def averaged(members: Sequence[Sequence[Dense]]) -> tuple[Dense, ...]:
    """One network that gives the mean of several of the same shape: side by side, in blocks."""
    if len(members) == 1:
        return tuple(members[0])
    layers = []
    for index, same in enumerate(zip(*members, strict=True)):
        bias = np.concatenate([layer.bias for layer in same])
        if index == 0:
            weight = np.concatenate([layer.weight for layer in same])
        else:
            weight = np.zeros((len(bias), sum(layer.weight.shape[1] for layer in same)))
            down = across = 0
            for layer in same:
                high, wide = layer.weight.shape
                weight[down : down + high, across : across + wide] = layer.weight
                down, across = down + high, across + wide
        layers.append(Dense(weight, bias, same[0].activation))
    last = layers.pop()
    share = 1.0 / len(members)
    return (
        *layers,
        Dense(last.weight.sum(axis=0, keepdims=True) * share, last.bias.sum(keepdims=True) * share, "none"),
    )


def _fitted(rows: FloatArray, target: FloatArray, settings: SurrogateSettings, rng: np.random.Generator) -> list[Dense]:
    network = _Network((rows.shape[1], *settings.hidden, 1), settings.activation, settings.decay)
    weights = network.drawn(rng)
    if settings.optimiser == "lbfgs":
        found = minimize(
            network.loss, weights, (rows, target), "L-BFGS-B", jac=True, options={"maxiter": settings.steps}
        )
        weights = found.x
    else:
        weights = _adam(network, weights, rows, target, settings)
    return network.layers(weights)


def _adam(
    network: _Network, weights: FloatArray, rows: FloatArray, target: FloatArray, settings: SurrogateSettings
) -> FloatArray:
    """Adam as published, its rate falling to zero along a cosine, so that the last weights are as good as any."""
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, settings.steps + 1):
        _, gradient = network.loss(weights, rows, target)
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        rate = settings.learning_rate * 0.5 * (1.0 + np.cos(np.pi * step / settings.steps))
        weights = weights - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights


class _Network:
    """Weights as one vector, and the gradient of the mean squared error with respect to it."""

    def __init__(self, sizes: tuple[int, ...], activation: Activation, decay: float) -> None:
        self._shapes = [(out, wide) for wide, out in pairwise(sizes)]
        self._activation: Activation = activation
        self._decay = decay

    def drawn(self, rng: np.random.Generator) -> FloatArray:
        """Weights to begin with: uniform within the inverse root of a layer's width, as torch does."""
        parts = []
        for out, wide in self._shapes:
            parts.append(rng.uniform(-1.0, 1.0, out * (wide + 1)) / np.sqrt(wide))
        return np.concatenate(parts)

    def layers(self, weights: FloatArray) -> list[Dense]:
        layers, at = [], 0
        for index, (out, wide) in enumerate(self._shapes):
            weight = weights[at : at + out * wide].reshape(out, wide)
            at += out * wide
            last = index == len(self._shapes) - 1
            layers.append(Dense(weight, weights[at : at + out], "none" if last else self._activation))
            at += out
        return layers

    def loss(self, weights: FloatArray, rows: FloatArray, target: FloatArray) -> tuple[float, FloatArray]:
        """Mean squared error with weight decay, and its gradient."""
        layers = self.layers(weights)
        values = [rows]
        for layer in layers:
            values.append(activated(layer.activation, values[-1] @ layer.weight.T + layer.bias))
        error = values[-1][:, 0] - target
        loss = float(np.mean(error**2) + 0.5 * self._decay * (weights @ weights))
        back = (2.0 / len(target)) * error[:, None]
        parts: list[FloatArray] = []
        for layer, before, after in zip(reversed(layers), reversed(values[:-1]), reversed(values[1:]), strict=True):
            if layer.activation == "tanh":
                back = back * (1.0 - after**2)
            elif layer.activation == "relu":
                back = back * (after > 0.0)
            parts = [(back.T @ before).ravel(), back.sum(axis=0), *parts]
            back = back @ layer.weight
        return loss, np.concatenate(parts) + self._decay * weights
