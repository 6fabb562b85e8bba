"""What the authors' released reward surrogate says, tabulated: normalised perplexity gain over loss and split layer.

"Adaptive Layer Splitting for Wireless LLM Inference in Edge Computing" (arXiv 2406.02616), the surrogate of Llama-2-7B
released with it, layers 1 to 10 of 32, read off at losses 0.01, 0.10 and 0.20. Of 0.22 to 0.30 only the best layer and
the total rewards of layers 1 and 7 are known; the other layers are continued linearly from 0.10 and 0.20. A test holds
the optimal returns on this table against those of the surrogate itself.
"""

from __future__ import annotations

import numpy as np

from rl.arrays import FloatArray
from rl.grid import Grid

SPLITS = tuple(range(1, 11))
LOSSES = (0.01, 0.10, 0.20, 0.22, 0.26, 0.30)
NUM_LAYERS = 32

_TABULATED = (
    (-0.030, -0.034, -0.032, -0.021, -0.011, -0.001, 0.010, 0.020, 0.030, 0.039),
    (-0.028, -0.031, -0.029, -0.016, -0.000, 0.011, 0.021, 0.031, 0.041, 0.050),
    (-0.025, -0.029, -0.024, -0.012, 0.007, 0.023, 0.033, 0.043, 0.052, 0.062),
)
"""At losses 0.01, 0.10, 0.20; layers 1 to 10."""
_LAYER_1 = {0.22: -0.025, 0.26: -0.024, 0.30: -0.023}
_LAYER_7 = {0.22: 0.036, 0.26: 0.041, 0.30: 0.045}
"""From total rewards 10 f + (10 - l)/10 of 0.65, 0.66, 0.67 and 0.66, 0.71, 0.75."""


def authors_gain() -> AuthorsGain:
    """The surface, ready to be asked."""
    rows = [np.array(row) for row in _TABULATED]
    per_loss = (rows[2] - rows[1]) / 0.10
    for loss in LOSSES[3:]:
        row = rows[2] + per_loss * (loss - 0.20)
        row[0], row[6] = _LAYER_1[loss], _LAYER_7[loss]
        rows.append(row)
    return AuthorsGain(Grid((np.array(LOSSES), np.array(SPLITS, np.float64)), np.stack(rows)))


class AuthorsGain:
    """Satisfies `rl.quality.Gain`; sigma is ignored, since their code has no noise."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __call__(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        return self.grid.at(loss, split)
