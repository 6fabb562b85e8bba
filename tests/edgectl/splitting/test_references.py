"""References decide as the controllers they stand for, earn in the order of what they know, and are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgectl.splitting.references import (
    COARSE_GRIDS,
    HYSTERESIS,
    OPTIMUM,
    PLANNER,
    RANDOM,
    STATIC,
    STATIONARY,
    TABLE,
    by_coarse_tables,
    coarse,
    looking_up,
    planning_ahead,
    references,
)
from edgectl.splitting.runs import RunSpec
from edgectl.splitting.worlds import Inputs, true_world, weights_of
from rl.authors_table import authors_gain
from rl.controllers import DpController, GreedyController, HysteresisController
from rl.optimal import solve
from rl.rollout import Decide, Starts, by, play
from tests.fakes.canned_evidence import write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return Inputs.load(folder, "a-model")


def same(spec: RunSpec, inputs: Inputs, one: Decide, other: Decide, count: int) -> None:
    world = true_world(spec, inputs)
    starts = Starts.drawn(world, count, 3)
    first, second = play(world, one, starts), play(world, other, starts)
    assert np.array_equal(first.places, second.places)


@pytest.mark.parametrize("world", ["authors", "model", "harder"])
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_looking_up_is_the_controllers_look_up(inputs: Inputs, world: str, margin: float) -> None:
    spec = RunSpec(world=world)  # type: ignore[arg-type]
    gain, splits = inputs.gain(spec.world, "table"), true_world(spec, inputs).splits
    weights = weights_of(spec.world)
    controller = HysteresisController(GreedyController(gain, splits, weights), margin)
    same(spec, inputs, looking_up(gain, splits, weights, margin), by(controller), 20)


@pytest.mark.parametrize("world", ["authors", "model"])
def test_planning_ahead_is_the_dp_controller(inputs: Inputs, world: str) -> None:
    spec = RunSpec(world=world)  # type: ignore[arg-type]
    optimum = solve(true_world(spec, inputs), 31)
    same(spec, inputs, planning_ahead(optimum), by(DpController(optimum)), 10)


def test_who_knows_more_earns_more_and_it_is_computed_once(inputs: Inputs, tmp_path: Path) -> None:
    found = references(RunSpec(), inputs, 500, tmp_path, "d" * 64)
    mean = {name: each.mean for name, each in found.items()}
    assert mean[RANDOM] < mean[STATIC] < mean[STATIONARY] <= mean[OPTIMUM] + 1e-3
    assert mean[OPTIMUM] == pytest.approx(3.2, abs=0.1)  # "Adaptive Layer Splitting", 9 actions
    assert mean[RANDOM] == pytest.approx(2.7, abs=0.15)
    assert set(found) == {RANDOM, PLANNER, STATIC, TABLE, HYSTERESIS, STATIONARY, OPTIMUM}
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace(f'"mean": {mean[RANDOM]}', '"mean": 77.0'))
    assert references(RunSpec(), inputs, 500, tmp_path, "d" * 64)[RANDOM].mean == 77.0


def test_a_coarse_table_knows_its_points_and_nothing_else() -> None:
    gain = authors_gain()
    losses, splits = np.array([0.01, 0.1, 0.2]), np.array([1.0, 5.0, 10.0])
    known = coarse(gain, losses, splits)
    assert known(losses, splits, 0 * losses) == pytest.approx(gain(losses, splits, 0 * losses))
    between = known(np.array([0.1]), np.array([3.0]), np.array([0.0]))
    ends = gain(np.array([0.1, 0.1]), np.array([1.0, 5.0]), np.zeros(2))
    assert between == pytest.approx(ends.mean())


def test_more_evaluations_make_better_tables(inputs: Inputs, tmp_path: Path) -> None:
    found = by_coarse_tables(inputs, 500, tmp_path, "d" * 64)
    assert list(found) == list(COARSE_GRIDS)
    solved = [both[OPTIMUM].mean for both in found.values()]
    assert solved[0] < solved[-1]
    assert all(losses * splits == count for count, (losses, splits) in COARSE_GRIDS.items())
