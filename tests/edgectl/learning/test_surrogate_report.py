"""`rl fit` without the command: which candidates compete, which wins, what is said of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.learning.surrogate_report import describe_fit, fit_as_json, fit_best, write_surrogate
from rl.surrogate import BadSurrogate, parse_surrogate
from tests.fakes.quality_tables import known_table


def test_the_candidate_that_predicts_best_is_fitted_and_written(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = known_table()
    spoiled = (replace(table.records[0], runs=(math.nan,)), *table.records[1:])
    path.write_text(replace(table, records=spoiled).to_json())
    found = fit_best(path, "smooth-ppl", 4, 0, lambda done, total: None)
    assert found.validations[0].gain.r2 > 0.95
    assert (found.points, found.left_out) == (59, 1)
    said = describe_fit(found)
    assert "1 without a number left out" in said
    assert "perplexity" in said
    assert fit_as_json(found)["validations"][0]["ppl"]["r2"] > 0.95
    out = tmp_path / "surrogate.json"
    write_surrogate(out, found)
    again = parse_surrogate(out.read_text())
    assert again.notes["held_out_gain"]["r2"] == found.validations[0].gain.r2
    assert (again.model, again.num_layers) == ("tiny", 32)


def test_the_published_surface_has_gains_alone() -> None:
    with pytest.raises(BadSurrogate, match="has gains only"):
        fit_best(None, "smooth-ppl", 4, 0, lambda done, total: None)
    found = fit_best(None, "smooth-gain", 4, 0, lambda done, total: None)
    assert found.validations[0].gain.r2 > 0.95


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    found = fit_best(None, "smooth-gain", 2, 0, lambda done, total: None)
    with pytest.raises(ConfigError, match=r"--out .*none/s\.json: No such file"):
        write_surrogate(tmp_path / "none" / "s.json", found)
