"""Perplexities of the splitting study: erasure alone, noise alone, and equation 3 whole; resumable, each in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edgectl.quality.collect import CollectSettings, Progress, collect
from edgectl.quality.perplexity import MeasuredText
from edgectl.quality.points import QualityPoint, Runs, grid
from edgectl.splitting.results import Curve, CurvePoint, Finding, Panel
from edgectl.splitting.sweeps import StudySize
from rl.evaluate import Interval
from rl.quality import QualityRecord, QualityTable

CLAIM_LOSSES = (0.0, 0.1, 0.3)
"""Between these, intervals have to be apart."""
MOST_GRID_S = 900


@dataclass(frozen=True, slots=True)
class Measured:
    """The three grids."""

    erasure: QualityTable
    noise: QualityTable
    whole: QualityTable


GRIDS = ("erasure", "noise", "whole")


def points_of(name: str, size: StudySize) -> tuple[QualityPoint, ...]:
    """Of one of GRIDS: what is lost without noise, noise without loss, and both with fading (equation 3)."""
    if name == "erasure":
        return grid(size.splits, size.losses)
    if name == "noise":
        return grid(size.splits, (0.0,), (0.0, *size.sigmas))
    return grid(size.splits, size.losses, size.fading_sigmas, fading="nakagami")


def measure(name: str, model: str, size: StudySize, folder: Path, progress: Progress) -> QualityTable:
    """Measures what the folder does not have of a grid. Raises as `edgectl.quality.collect.collect` does."""
    settings = CollectSettings(
        model=model,
        points=points_of(name, size),
        text=MeasuredText(tokens=size.grid_tokens),
        runs=Runs(count=size.grid_runs),
    )
    return collect(settings, folder / f"quality-{name}.jsonl", progress)


def figure_3(measured: Measured) -> tuple[Panel, ...]:
    """Perplexity against loss, against sigma and, under equation 3, against the split."""
    whole = measured.whole
    sigma = whole.sigmas[-1]
    by_split = Panel(
        f"Eq. (3) whole, sigma {sigma:g}: fading, noise, erasure",
        "split (layers on the source)",
        "perplexity",
        tuple(
            Curve(
                f"loss {loss:g}", tuple(_point(record.split, record) for record in _of(whole, loss=loss, sigma=sigma))
            )
            for loss in whole.losses
        ),
        logarithmic=("y",),
    )
    return (
        _lines(measured.erasure, "erasure alone", "loss probability", lambda record: record.loss),
        _lines(measured.noise, "Gaussian noise of fixed sigma alone", "sigma", lambda record: record.sigma),
        by_split,
    )


def _lines(table: QualityTable, title: str, x_label: str, at: Callable[[QualityRecord], float]) -> Panel:
    curves = tuple(
        Curve(f"split {split}", tuple(_point(at(record), record) for record in _of(table, split=split)))
        for split in table.splits
    )
    return Panel(title, x_label, "perplexity", curves, logarithmic=("y",))


def _of(table: QualityTable, **wanted: float) -> list[QualityRecord]:
    """Records with these values, in the order of split, loss and sigma."""
    found = [record for record in table.records if all(getattr(record, name) == each for name, each in wanted.items())]
    return sorted(found, key=lambda record: (record.split, record.loss, record.sigma))


def _point(at: float, record: QualityRecord) -> CurvePoint:
    return CurvePoint(at, Interval(record.ppl_mean, record.ppl_ci95))


def quality_findings(measured: Measured, erasure_s: float) -> tuple[Finding, ...]:
    """Fig. 3's two claims, the erasure that does not follow the second, and the time the grid took."""
    erasure, noise, whole = measured.erasure, measured.noise, measured.whole
    apart = [split for split in erasure.splits if _apart(_of(erasure, split=split), CLAIM_LOSSES, "loss")]
    louder = [split for split in noise.splits if _apart(_of(noise, split=split), noise.sigmas, "sigma")]
    sigma = noise.sigmas[-1]
    by_split = [record.ppl_mean for record in _of(noise, sigma=sigma)]
    erased = [record.ppl_mean for record in _of(erasure, loss=erasure.losses[-1])]
    whole_at = [record.ppl_mean for record in _of(whole, loss=whole.losses[-1], sigma=whole.sigmas[-1])]
    found = [
        Finding(
            "Fig. 3: PPL rises with loss at every split, 95 % intervals apart",
            "yes",
            f"at {len(apart)} of {len(erasure.splits)} splits between "
            + ", ".join(f"{loss:g}" for loss in CLAIM_LOSSES if loss in erasure.losses),
            _verdict(len(apart) == len(erasure.splits)),
        ),
        Finding(
            "Fig. 3: PPL rises with sigma at every split, 95 % intervals apart",
            "yes",
            f"at {len(louder)} of {len(noise.splits)} splits between "
            + ", ".join(f"{each:g}" for each in noise.sigmas),
            _verdict(len(louder) == len(noise.splits)),
        ),
        Finding(
            f"Fig. 3: earlier splits are worse, fixed sigma {sigma:g}",
            "yes",
            " > ".join(f"{value:.1f}" for value in by_split),
            _verdict(_falls(by_split)),
        ),
        Finding(
            f"the same under Eq. (3) whole, loss {whole.losses[-1]:g}, sigma {whole.sigmas[-1]:g}",
            "yes",
            ", ".join(f"{value:.1f}" for value in whole_at),
            _verdict(_falls(whole_at)),
        ),
        Finding(
            f"earlier splits are worse, erasure of {erasure.losses[-1]:g} alone",
            "yes",
            ", ".join(f"{value:.1f}" for value in erased),
            _verdict(_falls(erased)) + ("" if _falls(erased) else ": see Fig. 3"),
        ),
    ]
    points, runs = len(erasure.records), len(erasure.records[0].runs)
    found.append(
        Finding(
            f"grid of {len(erasure.losses)} × {len(erasure.splits)} points, {runs} runs each",
            "≤ 15 min",
            f"{erasure_s / 60:.1f} min for {points} points",
            "reached" if erasure_s <= MOST_GRID_S else "missed",
        )
    )
    return tuple(found)


def _apart(records: Sequence[QualityRecord], levels: Sequence[float], name: str) -> bool:
    """Whether the means ascend from level to level, and no two neighbours' intervals overlap. One run has none."""
    chosen = [record for record in records if getattr(record, name) in levels]
    for low, high in pairwise(chosen):
        if not low.ppl_mean + (low.ppl_ci95 or 0.0) < high.ppl_mean - (high.ppl_ci95 or 0.0):
            return False  # or one of them is no number
    return len(chosen) > 1


def _falls(values: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(values))


def _verdict(is_so: bool) -> str:
    return "reproduced" if is_so else "not reproduced"
