"""Runs are kept under what they depend on; damaged files count as absent."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.splitting.runs import RunResult, RunSpec, RunStore, result_from_json, spec_from_json, write_whole
from rl.train_settings import TrainSettings

RESULT = RunResult(
    curve=((400, 1.5), (800, 2.5)),
    returns=(1.0, 2.0),
    mean=1.5,
    untrained_returns=(0.5,),
    choices=((0.1, 7),),
    train_s=1.25,
    peak_rss_bytes=1 << 28,
    evaluations=3,
    evaluation_s=0.5,
    notes={"moves": 1.0},
)
OTHER_VALUES = {
    "algorithm": "dqn",
    "world": "harder",
    "case": "L",
    "actions": 3,
    "steps": 1,
    "seed": 9,
    "reward": "ppl",
    "learning_rate": 1e-3,
    "batch_size": 50,
    "clip_range": 0.3,
    "gae_lambda": 0.9,
    "tuned": True,
    "rollout": 100,
    "history": 4,
}


def test_what_is_put_is_found_again(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs", "digest")
    assert store.get(RunSpec()) is None
    store.put(RunSpec(), RESULT)
    assert store.get(RunSpec()) == RESULT
    assert spec_from_json(asdict(RunSpec(seed=3))) == RunSpec(seed=3)


def test_every_field_and_every_input_makes_another_run(tmp_path: Path) -> None:
    assert set(OTHER_VALUES) == {each.name for each in fields(RunSpec)}
    store = RunStore(tmp_path, "digest")
    paths = {store.path_of(RunSpec()), RunStore(tmp_path, "other").path_of(RunSpec())}
    paths |= {store.path_of(replace(RunSpec(), **{name: value})) for name, value in OTHER_VALUES.items()}
    assert len(paths) == len(OTHER_VALUES) + 2
    assert len({replace(RunSpec(), **{name: value}).title for name, value in OTHER_VALUES.items()}) > 10


def test_new_settings_of_ours_make_the_runs_by_them_again_and_no_others(tmp_path: Path) -> None:
    before, after = (RunStore(tmp_path, "digest", TrainSettings(gamma=gamma)) for gamma in (1.0, 0.8))
    tuned = RunSpec(tuned=True)
    before.put(tuned, RESULT)
    before.put(RunSpec(), RESULT)
    assert (after.get(tuned), after.get(RunSpec())) == (None, RESULT)
    # What studies have kept since the beginning.
    assert after.path_of(RunSpec()).name == "ppo-authors-A9-0-593bd7cf27c38547.json"


@pytest.mark.parametrize("kept", ["", "{", "[]", "{}", '{"curve": 1, "returns": [], "mean": 1}', '{"curve": []}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, kept: str) -> None:
    store = RunStore(tmp_path, "digest")
    store.path_of(RunSpec()).write_text(kept)
    assert store.get(RunSpec()) is None


@pytest.mark.parametrize(
    "wrong", [{"algorithm": "sac"}, {"case": "B"}, {"actions": 4}, {"steps": 0}, {"seed": -1}, {"speed": 1}]
)
def test_what_is_no_run(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        spec_from_json(wrong)


def test_what_is_no_result() -> None:
    with pytest.raises(ValueError, match="mean"):
        result_from_json({"curve": [], "returns": []})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        write_whole(tmp_path / "file" / "x.json", "{}")
