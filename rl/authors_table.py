"""What the authors' released reward surrogate says, tabulated: normalised perplexity gain over loss and split layer.

"Adaptive Layer Splitting for Wireless LLM Inference in Edge Computing" (arXiv 2406.02616): the surrogate of Llama-2-7B
released with it, layers 1 to 10 of 32, read off to three decimals. Linear between the losses it differs from the
surrogate by less than 0.001; from 0 to 0.01 it is constant.
"""

from __future__ import annotations

import numpy as np

from rl.arrays import FloatArray
from rl.grid import Grid

SPLITS = tuple(range(1, 11))
LOSSES = (0.01, 0.10, 0.20, 0.22, 0.26, 0.30)
NUM_LAYERS = 32
MEASURED_LOSSES = (0.02, 0.06, 0.10, 0.14, 0.18, 0.22, 0.26, 0.30)
MEASURED_SPLITS = tuple(range(1, 10))
"""The 72 points whose perplexities their released code measures, and fits the surrogate to."""

_GAINS = (
    (-0.030, -0.034, -0.032, -0.021, -0.011, -0.001, 0.010, 0.020, 0.030, 0.039),
    (-0.028, -0.031, -0.029, -0.016, -0.000, 0.011, 0.021, 0.031, 0.041, 0.050),
    (-0.025, -0.029, -0.024, -0.012, 0.007, 0.023, 0.033, 0.043, 0.052, 0.062),
    (-0.025, -0.028, -0.023, -0.011, 0.008, 0.025, 0.036, 0.045, 0.055, 0.064),
    (-0.024, -0.027, -0.021, -0.009, 0.010, 0.028, 0.041, 0.050, 0.059, 0.069),
    (-0.023, -0.026, -0.019, -0.007, 0.012, 0.031, 0.045, 0.055, 0.064, 0.073),
)
"""A row per loss; layers 1 to 10."""


def authors_gain() -> AuthorsGain:
    """The surface, ready to be asked."""
    return AuthorsGain(Grid((np.array(LOSSES), np.array(SPLITS, np.float64)), np.array(_GAINS)))


class AuthorsGain:
    """Satisfies `rl.quality.Gain`; sigma is ignored, since their code has no noise."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __call__(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        return self.grid.at(loss, split)
