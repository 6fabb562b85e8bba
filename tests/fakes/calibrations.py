"""Hidden states whose elements hang together, and what a calibration of them says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.compute.calibration import Calibration, calibrate


def related_states(tokens: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Hidden states [tokens, size]: an eighth as many causes as elements, and a few elements of great energy.

    The causes are the same for every `seed`: what was learned from one text helps with another.
    """
    loadings = np.random.default_rng(12).normal(size=(max(1, size // 8), size))
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(tokens, len(loadings))) @ loadings + 0.3 * rng.normal(size=(tokens, size)) + 0.5
    states[:, 1::16] *= 20.0
    return states.astype(np.float32)


def calibration(layer: int, size: int) -> Calibration:
    return calibrate(related_states(4096, size, 1), layer)
