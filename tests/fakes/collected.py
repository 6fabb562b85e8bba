"""Measured perplexities that nobody measured: for reports and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgectl.model_source import LocatedModel
from edgectl.planning import ServedModel
from edgectl.quality.collect import Collected
from edgectl.quality.perplexity import Subject
from edgectl.quality.points import ModelKind
from edgectl.quality.text_windows import TextWindows
from rl.quality import QualityRecord
from tests.fakes.random_weights import SMALL


def collected(*records: QualityRecord, model: str = "m") -> Collected:
    """Of a model that is nowhere."""
    text = TextWindows(np.zeros((4, 64), np.int64), "text")
    subject = Subject(LocatedModel(model, Path("nowhere")), ServedModel(model, "digest", SMALL), ModelKind(), text)
    return Collected(subject, records)


def record(
    split: int, loss: float, *runs: float, sigma: float = 0.0, m: float | None = None, snr_db: float | None = None
) -> QualityRecord:
    return QualityRecord(split, loss, sigma, "element", "zero", "fp16", runs or (40.0,), 252, m, snr_db)
