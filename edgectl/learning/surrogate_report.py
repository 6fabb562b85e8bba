"""`edgectl rl fit`: candidates cross-validated side by side, the best of them fitted to everything and written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ConfigError
from edgectl.learning.worlds import surface_of
from edgectl.output import say, table
from edgectl.quality.table_file import read_table
from rl.authors_table import MEASURED_LOSSES, SPLITS
from rl.surrogate import BadSurrogate, Surrogate, dump_surrogate, scores_as_dict
from rl.surrogate_fit import CANDIDATES, Points, Validation, cross_validate, fit, points_of


@dataclass(frozen=True, eq=False)
class Fitted:
    """What cross-validation said of each candidate, and the one that was chosen, fitted to all points."""

    validations: tuple[Validation, ...]
    surrogate: Surrogate
    points: int
    left_out: int


def fit_best(quality: Path | None, kind: str, folds: int, seed: int, progress: Callable[[int, int], None]) -> Fitted:
    """Raises BadQualityTable and BadSurrogate."""
    points = published_points() if quality is None else points_of(read_table(quality))
    wanted = [
        each
        for each in CANDIDATES
        if kind in ("best", each.name) and not (each.form == "log_ppl" and points.ppl is None)
    ]
    if not wanted:
        raise BadSurrogate(f"surrogate: {kind} needs perplexities, the published surface has gains only")
    validations = []
    for index, settings in enumerate(wanted):
        progress(index, len(wanted) + 1)
        validations.append(cross_validate(points, settings, folds, seed))
    best = int(np.argmax([-math.inf if math.isnan(each.gain.r2) else each.gain.r2 for each in validations]))
    progress(len(wanted), len(wanted) + 1)
    surrogate = fit(points, wanted[best], seed)
    notes = {**surrogate.notes, "folds": folds, "held_out_gain": scores_as_dict(validations[best].gain)}
    if (ppl := validations[best].ppl) is not None:
        notes["held_out_ppl"] = scores_as_dict(ppl)
    return Fitted(tuple(validations), replace(surrogate, notes=notes), len(points.rows), points.left_out)


def published_points() -> Points:
    """The published surface at the losses that its authors measured, and all of its splits."""
    surface = surface_of(None)
    rows = np.array([[loss, split, 0.0] for loss in MEASURED_LOSSES for split in SPLITS])
    return Points(rows, surface.gain(*rows.T), None, SPLITS, surface.model, surface.digest, surface.num_layers)


def write_surrogate(path: Path, found: Fitted) -> None:
    """Raises ConfigError."""
    try:
        path.write_text(dump_surrogate(found.surrogate), encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"--out {path}: {problem.strerror}") from problem
    say(f"wrote {path}")


def describe_fit(found: Fitted) -> str:
    """One line per candidate and form, and which was chosen."""
    rows = []
    for each in found.validations:
        for form, scores in (("gain", each.gain), ("perplexity", each.ppl)):
            if scores is not None:
                rows.append((each.settings, form, f"{scores.r2:.4f}", f"{scores.mse:.3g}", f"{scores.mae:.3g}"))
    folds = found.validations[0].folds
    left_out = f", {found.left_out} without a number left out" if found.left_out else ""
    return (
        f"{table(('surrogate', 'of', 'R²', 'MSE', 'MAE'), rows)}\n\n"
        f"on held-out points, {folds} folds of {found.points} points{left_out}; "
        f"written: {found.surrogate.notes['settings']}"
    )


def fit_as_json(found: Fitted) -> dict[str, Any]:
    """The same for programs."""
    return {
        "points": found.points,
        "left_out": found.left_out,
        "written": found.surrogate.notes["settings"],
        "validations": [
            {
                "surrogate": each.settings,
                "folds": each.folds,
                "gain": scores_as_dict(each.gain),
                "ppl": None if each.ppl is None else scores_as_dict(each.ppl),
            }
            for each in found.validations
        ],
    }
