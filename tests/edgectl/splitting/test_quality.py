"""Fig. 3's claims are read off the records: a table where one is broken says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgectl.splitting.quality import GRIDS, Measured, figure_3, points_of, quality_findings
from edgectl.splitting.sweeps import FULL, QUICK
from rl.quality import QualityTable
from tests.fakes.canned_evidence import SPLITS, table

MEASURED = Measured(table(sigmas=(0.0,)), table(losses=(0.0,)), table())


def verdicts(measured: Measured, erasure_s: float = 60.0) -> list[str]:
    return [finding.verdict for finding in quality_findings(measured, erasure_s)]


def test_the_grids_are_those_of_the_issue() -> None:
    erasure = points_of("erasure", FULL)
    assert len(erasure) == 72
    assert {point.sigma for point in erasure} == {0.0}
    assert {point.m for point in erasure} == {None}
    assert {point.loss for point in points_of("noise", FULL)} == {0.0}
    whole = points_of("whole", FULL)
    assert all(point.m is not None for point in whole)
    assert len(whole) == 72 * len(FULL.fading_sigmas)
    assert all(points_of(name, QUICK) for name in GRIDS)


def test_three_panels_with_a_line_per_split_or_loss() -> None:
    erasure, noise, whole = figure_3(MEASURED)
    assert [curve.name for curve in erasure.curves] == [f"split {split}" for split in SPLITS]
    assert [point.at for point in noise.curves[0].points] == [0.0, 2.0]
    assert [point.at for point in whole.curves[0].points] == list(SPLITS)
    assert erasure.curves[0].points[1].value.mean == pytest.approx(60.0)


def test_claims_that_hold() -> None:
    # Erasure alone is the same at every split here, so it does not fall.
    expected = ["reproduced", "reproduced", "reproduced", "reproduced", "not reproduced: see Fig. 3", "reached"]
    assert verdicts(MEASURED) == expected
    assert verdicts(MEASURED, 901.0)[-1] == "missed"


def with_runs(quality: QualityTable, split: int, loss: float, runs: tuple[float, ...]) -> QualityTable:
    records = [
        replace(record, runs=runs) if (record.split, record.loss) == (split, loss) else record
        for record in quality.records
    ]
    return replace(quality, records=tuple(records))


@pytest.mark.parametrize("runs", [(59.0, 81.0), (40.0, 40.2), (float("nan"), float("nan"))])
def test_overlapping_or_falling_perplexities_break_the_first_claim(runs: tuple[float, ...]) -> None:
    broken = replace(MEASURED, erasure=with_runs(MEASURED.erasure, 10, 0.3, runs))
    first = quality_findings(broken, 1.0)[0]
    assert first.verdict == "not reproduced"
    assert first.ours.startswith("at 2 of 3 splits")


def test_a_later_split_that_is_worse_breaks_the_order() -> None:
    louder = tuple(replace(record, runs=(999.0, 999.1)) if record.split == 31 else record for record in table().records)
    broken = replace(MEASURED, whole=replace(MEASURED.whole, records=louder))
    assert verdicts(broken)[3] == "not reproduced"
