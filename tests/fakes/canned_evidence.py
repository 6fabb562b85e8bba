"""All that the splitting study computes, made up: small tables, and runs whose worth is a formula of their fields."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgectl.splitting.evidence import Evidence
from edgectl.splitting.quality import Measured
from edgectl.splitting.references import (
    AHEAD,
    COARSE_GRIDS,
    HYSTERESIS,
    OPTIMUM,
    PLANNER,
    RANDOM,
    STATIC,
    STATIONARY,
    TABLE,
)
from edgectl.splitting.runs import RunResult, RunSpec
from edgectl.splitting.surrogates import authors_points
from edgectl.splitting.sweeps import QUICK, StudySize, all_runs
from edgectl.splitting.worlds import SURROGATE_FILES, TABLE_FILE
from rl.quality import QualityRecord, QualityTable
from rl.surrogate import dump_surrogate
from rl.surrogate_fit import SMOOTH_GAIN, SMOOTH_PPL, fit, points_of

SPLITS = (1, 10, 31)
WORTH = {RANDOM: 2.0, PLANNER: 2.1, STATIC: 2.5, TABLE: 2.8, HYSTERESIS: 2.7, STATIONARY: 3.0, OPTIMUM: 3.1}


def table(losses: tuple[float, ...] = (0.0, 0.1, 0.3), sigmas: tuple[float, ...] = (0.0, 2.0)) -> QualityTable:
    """Perplexities that rise with loss and sigma and fall with the split."""
    records = tuple(
        QualityRecord(split, loss, sigma, "element", "zero", "fp16", _runs(split, loss, sigma), 510)
        for split in SPLITS
        for loss in losses
        for sigma in sigmas
    )
    return QualityTable("wiki-32l", "", 32, 256, records)


def _runs(split: int, loss: float, sigma: float) -> tuple[float, float]:
    worse = 50.0 + 100.0 * loss + 20.0 * sigma * (40 - split) / 40
    return worse - 0.1, worse + 0.1


def write_inputs(folder: Path) -> None:
    """What `Inputs.load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE_FILE).write_text(table().to_json())
    for world, points, settings in (
        ("authors", authors_points(), SMOOTH_GAIN),
        ("model", points_of(table()), SMOOTH_PPL),
    ):
        quick = replace(settings, hidden=(16,), members=1, steps=200)
        (folder / SURROGATE_FILES[world]).write_text(dump_surrogate(fit(points, quick)))


def result(mean: float, spec: RunSpec | None = None) -> RunResult:
    steps = 400 if spec is None else spec.steps
    return RunResult(
        curve=tuple((steps * at // 4, mean * at / 4) for at in range(1, 5)),
        returns=(mean - 0.5, mean, mean + 0.5),
        mean=mean,
        untrained_returns=(1.0, 1.5),
        choices=((0.02, 1), (0.1, 1), (0.2, 7), (0.3, 7)),
        train_s=steps / 1000,
        peak_rss_bytes=300 << 20,
        notes={"moves": 0.25, "steps": float(steps)},
    )


def worth_of(spec: RunSpec) -> float:
    """PPO is best, larger action sets and longer runs are better, history helps; seeds differ a little."""
    algorithm = {"ppo": 0.9, "a2c": 0.5, "dqn": 0.3}[spec.algorithm]
    return 2.0 + algorithm + spec.actions / 100 + 0.1 * (spec.history > 1) + 0.001 * spec.seed


def canned_evidence(size: StudySize = QUICK) -> Evidence:
    specs = all_runs(size)
    names = {name: result(value) for name, value in WORTH.items()}
    references = {
        (spec.world, spec.case, spec.actions): names | ({AHEAD: result(2.9)} if spec.world == "harder" else {})
        for spec in specs
    }
    scores = {"r2": 0.99, "mse": 0.1, "mae": 0.2, "points": 72}
    validations = {
        "authors": [{"settings": SMOOTH_GAIN.name, "folds": 2, "gain": scores, "ppl": None}],
        "model": [{"settings": SMOOTH_PPL.name, "folds": 2, "gain": scores, "ppl": scores}],
    }
    return Evidence(
        size=size,
        measured=Measured(table(sigmas=(0.0,)), table(losses=(0.0,)), table()),
        validations=validations,
        results={spec: result(worth_of(spec), spec) for spec in specs},
        truth=result(2.0),
        references=references,
        coarse={count: {TABLE: result(2.5), OPTIMUM: result(2.6 + count / 100)} for count in COARSE_GRIDS},
        seconds={"grid: erasure": 30.0, "grid: whole": 60.0},
        processes=2,
    )
