"""Quality tables of surfaces that are known: perplexity rises with loss and noise, and less so behind deeper splits."""

from __future__ import annotations

import math

from rl.quality import QualityRecord, QualityTable

SPLITS = (1, 4, 8, 16, 24, 31)
LOSSES = (0.0, 0.05, 0.1, 0.2, 0.3)


def known_ppl(loss: float, split: float, sigma: float) -> float:
    """The surface."""
    return 50.0 * math.exp(loss + (0.05 + 2.0 * loss) * sigma * math.exp(-split / 16))


def known_table(
    *,
    model: str = "tiny",
    digest: str = "ab" * 32,
    num_layers: int = 32,
    splits: tuple[int, ...] = SPLITS,
    sigmas: tuple[float, ...] = (0.0, 1.0),
) -> QualityTable:
    """Every point measured twice, alike."""
    records = [
        QualityRecord(split, loss, sigma, "element", "zero", "fp32", (known_ppl(loss, split, sigma),) * 2, 4096)
        for loss in LOSSES
        for split in splits
        for sigma in sigmas
    ]
    return QualityTable(model, digest, num_layers, 256, tuple(records))
