"""Training for a person: seeds, weights, worth, and what may be compared with what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgectl.learning.run import PolicyRun, load_decider, write_run
from edgectl.learning.training import (
    TrainRequest,
    contestants,
    describe_training,
    train_best,
    training_as_json,
    with_table,
)
from rl.policy_card import BadPolicy
from rl.surrogate import dump_surrogate
from rl.surrogate_fit import SMOOTH_PPL, fit, points_of
from tests.fakes.quality_tables import SPLITS, known_table
from tests.fakes.small_policy import random_network, small_card


def request(**changes: Any) -> TrainRequest:
    fields: dict[str, Any] = {
        "quality": None,
        "surrogate": None,
        "world": "drift",
        "learner": "ppo",
        "settings": "tuned",
        "actions": 3,
        "steps": 400,
        "seed": 3,
        "seeds": 1,
        "weights": {},
    }
    return TrainRequest(**(fields | changes))


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(known_table().to_json())
    return path


def test_the_best_seed_is_kept_and_all_are_told(table_file: Path) -> None:
    told: list[tuple[int, int]] = []
    found = train_best(
        request(quality=table_file, world="channel", seeds=2), lambda done, total: told.append((done, total))
    )
    assert found.seeds == (3, 4)
    assert found.best.card.seed == found.seeds[found.means.index(max(found.means))]
    assert (found.best.card.splits, found.best.card.trained_on) == (SPLITS, "table")
    assert told[-1] == (800, 800)
    assert "2 seeds:" in describe_training(found)
    assert training_as_json(found)["written_seed"] == found.best.card.seed


def test_rewards_may_come_from_a_surrogate(tmp_path: Path, table_file: Path) -> None:
    surrogate = tmp_path / "surrogate.json"
    surrogate.write_text(dump_surrogate(fit(points_of(known_table()), SMOOTH_PPL)))
    found = train_best(
        request(quality=table_file, surrogate=surrogate, learner="a2c", steps=80), lambda done, total: None
    )
    assert (found.best.card.trained_on, found.best.card.learner) == ("surrogate", "A2C")


def test_weights_are_the_persons_where_given() -> None:
    found = train_best(request(weights={"quality": 3.0, "load": None}, steps=40), lambda done, total: None)
    assert (found.best.card.weights.quality, found.best.card.weights.load) == (3.0, 1.0)
    with pytest.raises(BadPolicy, match="finite"):
        train_best(request(weights={"quality": float("nan")}), lambda done, total: None)
    with pytest.raises(BadPolicy, match="7 actions; 3, 5, 9"):
        train_best(request(actions=7), lambda done, total: None)


def stored(path: Path, **changes: Any) -> Path:
    card = replace(small_card(), splits=SPLITS, quality=known_table().to_json(), **changes)
    write_run(path, PolicyRun(card, tuple(random_network([2, 4, 3], card.seed))))
    return path


def test_policies_that_differ_in_their_seed_are_one_contestant(tmp_path: Path) -> None:
    paths = [stored(tmp_path / f"{seed}.json", world="drift", seed=seed) for seed in range(3)]
    _, world, grouped = contestants(paths, None)
    assert [len(decides) for decides in grouped.values()] == [3]
    assert world.splits == SPLITS


def test_policies_of_different_worlds_are_not_compared(tmp_path: Path) -> None:
    paths = [stored(tmp_path / f"{world}.json", world=world) for world in ("drift", "channel")]
    with pytest.raises(BadPolicy, match=r"channel\.json: another model, world"):
        contestants(paths, None)


def test_a_run_takes_a_table_of_its_own_model_alone(tmp_path: Path, table_file: Path) -> None:
    stored(tmp_path / "run.json")
    run = replace(PolicyRun(load_decider(tmp_path / "run.json")[0], ()), layers=tuple(random_network([2, 4, 3], 0)))
    assert with_table(run, table_file).card.quality == known_table().to_json()
    other = tmp_path / "other.json"
    other.write_text(known_table(model="other", digest="cd" * 32).to_json())
    with pytest.raises(BadPolicy, match="the table is of other"):
        with_table(run, other)
