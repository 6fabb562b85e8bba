"""Quality tables small enough to know by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rl.quality import QualityRecord, QualityTable

LOSSES = (0.0, 0.1, 0.3)


def small_table(
    ppl: Callable[[int, float], float],
    *,
    splits: Sequence[int] = (1, 2, 4, 8, 16),
    sigmas: Sequence[float] = (0.0,),
    num_layers: int = 32,
    model: str = "tiny",
    digest: str = "ab" * 32,
) -> QualityTable:
    """`ppl` of split and loss is what every run measured."""
    records = tuple(
        QualityRecord(split, loss, sigma, "element", "zero", "fp16", (ppl(split, loss),) * 2, 100)
        for split in splits
        for loss in LOSSES
        for sigma in sigmas
    )
    return QualityTable(model, digest, num_layers, 256, records)


def better_when_deep(split: int, loss: float) -> float:
    """Clean it is the same everywhere; with loss an early split is the worse one."""
    return 50.0 + 1000.0 * loss / split
