"""Surrogates of both worlds are fitted once, judged on points held out, and read again by training."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgectl.splitting.surrogates import authors_points, chosen_scores, fit_surrogates, surrogate_table
from edgectl.splitting.worlds import SURROGATE_FILES
from rl.surrogate import parse_surrogate
from tests.fakes.canned_evidence import table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surrogates")


def test_the_authors_have_72_points() -> None:
    points = authors_points()
    assert points.rows.shape == (72, 3)
    assert points.rows[:, 0].max() == 0.3
    assert set(points.rows[:, 1]) == set(range(1, 10))


def test_fitted_once_and_judged(folder: Path) -> None:
    validations = fit_surrogates(table(), folder, 2)
    assert [each["settings"] for each in validations["authors"]] == ["authors", "smooth-gain"]
    assert [each["settings"] for each in validations["model"]] == ["authors", "smooth-gain", "smooth-ppl"]
    gain, ppl = chosen_scores(validations, "authors")
    assert gain.r2 > 0.99
    assert ppl is None
    assert parse_surrogate((folder / SURROGATE_FILES["model"]).read_text()).form == "log_ppl"
    rows = surrogate_table(validations, 2).rows
    assert [row.name for row in rows][:2] == ["authors, authors", "authors, smooth-gain"]
    assert [row.cells[0] for row in rows][-2:] == ["normalised gain", "PPL"]

    kept = folder / "surrogates.json"
    kept.write_text(kept.read_text().replace('"smooth-ppl"', '"read-again"'))
    again = fit_surrogates(table(), folder, 2)
    assert again["model"][-1]["settings"] == "read-again"
    assert again["authors"] == validations["authors"]
