"""`edgectl rl` as a person types it: fit, train, evaluate, export, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgectl.failures import ExitCode
from rl.controller import Observation
from rl.policy import SplitPolicy
from tests.fakes.command_line import edgectl
from tests.fakes.quality_tables import SPLITS, known_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, its surrogate, a run and its policy: the whole way once."""
    at = tmp_path_factory.mktemp("rl")
    (at / "table.json").write_text(known_table().to_json())
    quality = ("--quality", str(at / "table.json"))
    surrogate, run = str(at / "surrogate.json"), str(at / "run.json")
    quick = ("--actions", "3", "--steps", "400", "--logs", str(at / "logs"))
    ways = [
        ("fit", *quality, "--kind", "smooth-gain", "--folds", "3", "--out", surrogate, "--json"),
        ("train", *quality, "--surrogate", surrogate, *quick, "--out", run, "--json"),
        ("export", run, "--out", str(at / "policy.onnx")),
    ]
    for arguments in ways:
        found = edgectl("rl", *arguments)
        assert found.exit_code == 0, found.output
        (at / f"{arguments[0]}.stdout").write_text(found.stdout)
    return at


def test_the_whole_way_ends_in_a_policy_that_decides(folder: Path) -> None:
    policy = SplitPolicy.load(folder / "policy.onnx")
    assert (policy.splits, policy.num_layers, policy.card.learner) == (SPLITS, 32, "PPO")
    assert policy.card.trained_on == "surrogate"
    assert policy.propose(Observation(8, loss=0.1, sigma=1.0)).split in (4, 8, 16)
    assert list((folder / "logs").rglob("events.out.tfevents.*"))


def test_numbers_come_as_json(folder: Path) -> None:
    fitted = json.loads((folder / "fit.stdout").read_text())
    assert fitted["validations"][0]["gain"]["r2"] > 0.95
    trained = json.loads((folder / "train.stdout").read_text())
    assert trained["splits"] == list(SPLITS)
    assert trained["written_seed"] == 0


def test_policy_and_run_are_valued_alike(folder: Path) -> None:
    found = edgectl(
        *("rl", "evaluate", str(folder / "policy.onnx"), str(folder / "run.json")), "--starts", "50", "--json"
    )
    assert found.exit_code == 0, found.output
    rows = {row["name"]: row for row in json.loads(found.stdout)["controllers"]}
    # One group, since they differ in nothing, and no spread, since they are the same policy.
    assert rows["PPO, surrogate, 400 steps"]["half"] == pytest.approx(0.0)
    assert set(rows) >= {"random", "table look-up", "best stationary", "optimum"}


def test_what_is_wrong_with_a_file_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.json"
    spoiled.write_text("{}")
    quality, policy = str(folder / "table.json"), str(tmp_path / "p.onnx")
    for arguments, said in (
        (("fit", "--quality", str(spoiled), "--out", str(tmp_path / "s.json")), "spoiled.json"),
        (
            ("train", "--quality", quality, "--surrogate", str(spoiled), "--out", str(tmp_path / "p.onnx")),
            "spoiled.json",
        ),
        (("train", "--out", str(tmp_path / "p.zip")), "p.zip"),
        (("train", "--actions", "4", "--out", policy), "4 actions"),
        (("evaluate", str(spoiled)), "spoiled.json"),
        (("export", str(spoiled), "--out", policy), "spoiled.json"),
    ):
        found = edgectl("rl", *arguments)
        assert found.exit_code == ExitCode.CONFIG, found.output
        assert said in found.stderr
        assert "Traceback" not in found.output
    assert not list(tmp_path.glob("p.*"))


def test_a_table_of_another_model_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(known_table(model="other", digest="cd" * 32).to_json())
    found = edgectl(
        "rl", "export", str(folder / "run.json"), "--quality", str(other), "--out", str(tmp_path / "p.onnx")
    )
    assert found.exit_code == ExitCode.CONFIG
    assert "for tiny" in found.stderr
    assert "other" in found.stderr
