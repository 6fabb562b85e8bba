"""Every run finds its world, rewarded by what it says and valued on the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.errors import ConfigError
from edgectl.splitting.runs import RunSpec
from edgectl.splitting.worlds import HARDER_HORIZON, TABLE_FILE, Inputs, true_world, world_of
from rl.authors_table import authors_gain
from rl.quality import BadQualityTable
from tests.fakes.canned_evidence import SPLITS, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return Inputs.load(folder, "a-model")


def test_worlds_of_runs(inputs: Inputs) -> None:
    authors = true_world(RunSpec(actions=3, case="L"), inputs)
    assert (authors.splits, authors.actions, authors.horizon) == (tuple(range(1, 11)), (0, -1, 1), 5)
    model = true_world(RunSpec(world="model"), inputs)
    assert (model.splits, model.observed, len(model.actions)) == (SPLITS, ("sigma", "m", "split"), 9)
    harder = true_world(RunSpec(world="harder", history=4), inputs)
    assert (harder.splits, harder.horizon, harder.frames) == (SPLITS, HARDER_HORIZON, 4)
    assert inputs.table_tokens == 512


def test_rewards_come_from_where_the_run_says(inputs: Inputs) -> None:
    loss, split, sigma = np.array([0.1]), np.array([7.0]), np.array([0.0])
    surface = authors_gain()(loss, split, sigma)
    assert inputs.gain("authors", "table")(loss, split, sigma) == surface
    fitted = inputs.gain("authors", "surrogate")(loss, split, sigma)
    assert fitted != surface
    assert fitted == pytest.approx(surface, abs=0.01)
    assert inputs.gain("harder", "surrogate") is inputs.gain("model", "surrogate")
    split[:] = 10.0
    assert inputs.gain("model", "table")(loss, split, sigma) == pytest.approx(inputs.table.gain(loss, split, sigma))
    assert world_of(RunSpec(world="model"), authors_gain(), inputs.table).splits == SPLITS


def test_inputs_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=TABLE_FILE):
        Inputs.load(tmp_path, "a-model")
    (tmp_path / TABLE_FILE).write_text("{}")
    with pytest.raises(BadQualityTable):
        Inputs.load(tmp_path, "a-model")
