"""The radio channel of "Adaptive Layer Splitting for Wireless LLM Inference" (arXiv 2406.02616), equations 3 to 5.

Pure: whoever draws passes a generator. Gains are Nakagami-m; what comes in below a threshold is lost.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammainc  # type: ignore[import-untyped]

from rl.arrays import FloatArray

LEAST_M, MOST_M = 0.5, 3.0
"""Half-Gaussian fading, and a channel that loses 1 in 100: the range that gives the authors' losses of 0.01 to 0.30."""
THRESHOLD_SQUARED = 0.15
"""h_th^2: with it and Omega = 1, m of 0.5 to 3 gives the losses that the authors' code draws."""


def nakagami_gain(m: ArrayLike, omega: float, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """h >= 0 with E[h^2] = omega (equation 4); m = 1 is Rayleigh, m without bound no fading. Raises ValueError."""
    shape = _checked(m, omega)
    return cast(FloatArray, np.sqrt(rng.gamma(shape, omega / shape, size)))


def loss_probability(m: ArrayLike, threshold_squared: float = THRESHOLD_SQUARED, omega: float = 1.0) -> FloatArray:
    """P(h < h_th), equation 5. Raises ValueError."""
    shape = _checked(m, omega)
    return np.asarray(gammainc(shape, shape * threshold_squared / omega), np.float64)


def _checked(m: ArrayLike, omega: float) -> FloatArray:
    shape = np.asarray(m, np.float64)
    if not np.all(shape >= 0.5) or not np.all(np.isfinite(shape)):
        raise ValueError(f"m {shape}: a Nakagami distribution has 0.5 or more")
    if not 0.0 < omega < np.inf:
        raise ValueError(f"omega {omega}: a mean square is more than 0")
    return shape
