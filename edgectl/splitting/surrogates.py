"""The study's surrogates: fitted to the authors' surface at their grid, and to the model's table; judged on points held
out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgectl.splitting.results import Row, Table
from edgectl.splitting.runs import World, kept, write_whole
from edgectl.splitting.worlds import SURROGATE_FILES
from rl.authors_table import MEASURED_LOSSES, MEASURED_SPLITS, NUM_LAYERS, SPLITS, authors_gain
from rl.quality import QualityTable
from rl.surrogate import Scores, dump_surrogate
from rl.surrogate_fit import AUTHORS, SMOOTH_GAIN, SMOOTH_PPL, Points, SurrogateSettings, cross_validate, fit, points_of

CHOSEN: dict[World, SurrogateSettings] = {"authors": SMOOTH_GAIN, "model": SMOOTH_PPL}
"""What training is rewarded by; how all of them do is in the report's table."""
LEAST_R2 = 0.95


def fit_surrogates(table: QualityTable, folder: Path, folds: int) -> dict[str, Any]:
    """Fits what training reads into the folder, and returns how every candidate did on held-out points, by world:
    {world: [{settings, gain: scores, ppl: scores or null}]}. What is there already is kept."""
    points: dict[World, Points] = {"authors": authors_points(), "model": points_of(table)}

    def compute() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for world, each in points.items():
            candidates = [AUTHORS, SMOOTH_GAIN] + ([SMOOTH_PPL] if each.ppl is not None else [])
            found[world] = [
                asdict(cross_validate(each, settings, min(folds, len(each.rows)))) for settings in candidates
            ]
            write_whole(folder / SURROGATE_FILES[world], dump_surrogate(fit(each, CHOSEN[world])))
        return found

    return kept(folder / "surrogates.json", compute)


def authors_points() -> Points:
    """The authors' surface, asked at their 72 points."""
    rows = np.array([[loss, split, 0.0] for loss in MEASURED_LOSSES for split in MEASURED_SPLITS])
    return Points(rows, authors_gain()(*rows.T), None, SPLITS, model="authors' surface", num_layers=NUM_LAYERS)


def chosen_scores(validations: Mapping[str, Any], world: World) -> tuple[Scores, Scores | None]:
    """Of the surrogate that training is rewarded by, on points it has not seen: of gains, which rewards are made of,
    and of perplexities where it predicts these."""
    (chosen,) = [each for each in validations[world] if each["settings"] == CHOSEN[world].name]
    return Scores(**chosen["gain"]), None if chosen["ppl"] is None else Scores(**chosen["ppl"])


def surrogate_table(validations: Mapping[str, Any], folds: int) -> Table:
    """How every candidate did, both worlds."""
    rows = []
    for world, candidates in validations.items():
        for each in candidates:
            for form in ("gain", "ppl"):
                if each[form] is not None:
                    rows.append(_row(world, each["settings"], form, Scores(**each[form])))
    return Table(
        f"surrogates, {folds}-fold cross-validation: every point is predicted by a network that has not seen it",
        ("world and network", "predicts", "R²", "MSE", "MAE", "points"),
        tuple(rows),
        "`authors` is 2-128-128-1 with ReLU on raw inputs, as released; `smooth-gain` and `smooth-ppl` are three "
        "averaged 32-32 tanh networks on normalised inputs, the latter fitted to log PPL. Points that all candidates "
        "are fitted to are the same; the paper does not print these numbers.",
    )


def _row(world: str, settings: str, form: str, scores: Scores) -> Row:
    what = "normalised gain" if form == "gain" else "PPL"
    cells = (what, f"{scores.r2:.4f}", f"{scores.mse:.3g}", f"{scores.mae:.3g}", f"{scores.points}")
    return Row(f"{world}, {settings}", cells)
