"""Records and tables of perplexity: what is averaged, what is interpolated, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from rl.quality import BadQualityTable, QualityRecord, QualityTable, joined


def record(split: int, loss: float, *runs: float, sigma: float = 0.0) -> QualityRecord:
    return QualityRecord(split, loss, sigma, "element", "rescale", "fp32", runs or (50.0 + split + 100 * loss,), 256)


def table(records: list[QualityRecord]) -> QualityTable:
    return QualityTable("tiny", "ab" * 32, 32, 256, tuple(records))


def test_a_mean_has_students_interval() -> None:
    runs = (50.0, 52.0, 51.0, 55.0)
    mean, half = record(1, 0.1, *runs).ppl_mean, record(1, 0.1, *runs).ppl_ci95
    low, high = stats.t.interval(0.95, 3, loc=np.mean(runs), scale=stats.sem(runs))
    assert mean == pytest.approx(np.mean(runs))
    assert half == pytest.approx((high - low) / 2)


def test_what_is_no_number_is_kept_and_not_averaged() -> None:
    kept = record(1, 0.1, 50.0, math.nan, 52.0, math.inf)
    assert (kept.not_finite, kept.ppl_mean) == (2, 51.0)
    broken = replace(kept, runs=(1e308, 1e308, 51.0))
    assert (broken.not_finite, broken.ppl_mean, broken.ppl_ci95) == (2, 51.0, None)
    assert kept.ppl_ci95 is not None
    assert math.isnan(record(1, 0.1, math.nan).ppl_mean)
    assert record(1, 0.1, math.nan, 50.0).ppl_ci95 is None


def test_runs_of_one_point_are_joined_in_order() -> None:
    assert joined([record(1, 0.1, 50.0), record(2, 0.1, 60.0), record(1, 0.1, 51.0)]) == (
        record(1, 0.1, 50.0, 51.0),
        record(2, 0.1, 60.0),
    )


def test_perplexity_is_linear_between_points_and_constant_beyond() -> None:
    grid = table([record(split, loss) for split in (1, 4) for loss in (0.0, 0.2)])
    assert grid.ppl(0.1, 2) == pytest.approx(50.0 + 2 + 10)
    assert grid.ppl(0.9, 31) == pytest.approx(50.0 + 4 + 20)
    np.testing.assert_allclose(grid.ppl([0.0, 0.05], [1, 3]), [51.0, 58.0])


def test_a_hole_is_named() -> None:
    with pytest.raises(BadQualityTable, match=r"none of loss 0.2, split 4, sigma 0; 1 points"):
        table([record(1, 0.0), record(4, 0.0), record(1, 0.2)])


def test_a_grid_of_far_more_points_than_records_is_refused_before_it_is_made() -> None:
    records = [record(number % 32, number / 5000, sigma=float(number)) for number in range(5000)]
    with pytest.raises(BadQualityTable, match="points are missing"):
        table(records)


def test_two_records_of_one_point_are_refused() -> None:
    with pytest.raises(BadQualityTable, match=r"two of loss 0\.1, split 1"):
        table([record(1, 0.1), record(1, 0.1, 60.0)])


def test_gain_is_the_mean_over_where_one_might_have_begun() -> None:
    grid = table([record(split, loss) for split in (1, 4, 9) for loss in (0.0, 0.2)])
    for loss, split in ((0.0, 1.0), (0.13, 4.0), (0.2, 7.0)):
        ppl = float(grid.ppl(loss, split))
        expected = np.mean([(grid.ppl(loss, first) - ppl) / grid.ppl(loss, first) for first in (1, 4, 9)])
        assert grid.gain(np.array([loss]), np.array([split]), np.zeros(1))[0] == pytest.approx(expected)


def test_gain_over_a_start_is_the_papers() -> None:
    grid = table([record(split, loss) for split in (1, 4) for loss in (0.0, 0.2)])
    start = (np.array([0.0]), np.array([4.0]), np.zeros(1))
    gained = grid.gain_over(start, np.array([0.2]), np.array([1.0]), np.zeros(1))
    assert gained == pytest.approx([(54.0 - 71.0) / 54.0])


def test_no_number_is_never_a_reward() -> None:
    grid = table([record(1, 0.0), record(2, 0.0), record(1, 0.2), record(2, 0.2, math.nan)])
    with pytest.raises(BadQualityTable, match=r"no perplexity near loss 0\.2"):
        grid.gain(np.array([0.0, 0.2]), np.array([1.0, 1.0]), np.zeros(2))
    assert grid.gain(np.zeros(1), np.ones(1), np.zeros(1)) == pytest.approx((52 - 51) / 52 / 2)


def test_a_table_of_another_model_is_refused() -> None:
    mine = table([record(1, 0.0)])
    with pytest.raises(BadQualityTable, match="num_layers"):
        mine.check_model("other", "", 24)
    with pytest.raises(BadQualityTable, match="digest"):
        mine.check_model("other", "cd" * 32, 32)
    mine.check_model("tiny", "", 32)


def test_json_keeps_everything() -> None:
    kept = table([record(1, 0.0, 50.0, math.nan, 51.5), record(4, 0.0)])
    again = QualityTable.from_json(kept.to_json())
    assert repr(again) == repr(kept)
    assert again.to_json() == kept.to_json()
    assert json.loads(kept.to_json())["records"][0]["ppl_mean"] == 50.75


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("", "nonsense"),
        ("", "[]"),
        ("schema", "2"),
        ("num_layers", '"many"'),
        ("num_layers", "1" + "0" * 400),
        ("window", "1"),
        ("records", "[]"),
        ("records[0].loss", "1.5"),
        ("records[0].runs", "[]"),
        ("records[0].m", "0.1"),
        ("records[0].mitigation", '"hope"'),
        ("records[0].split", "40"),
    ],
)
def test_a_wrong_field_is_named(place: str, wrong: str) -> None:
    text = wrong
    if place:
        raw = json.loads(table([record(1, 0.0)]).to_json())
        owner = raw["records"][0] if "." in place else raw
        owner[place.rpartition(".")[2]] = json.loads(wrong)
        text = json.dumps(raw)
    with pytest.raises(BadQualityTable) as caught:
        QualityTable.from_json(text)
    assert place.rpartition(".")[2] in str(caught.value)
