"""README's lines about radios as a person types them, in a folder of their own: `eval`, `rl`, `bench adaptive`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]


def lines_of(*beginnings: str) -> list[list[str]]:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(beginnings)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(words: list[str], folder: Path) -> str:
    command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_perplexity_under_loss_and_a_calibration(folder: Path) -> None:
    measure, calibrate = lines_of("edgectl eval")
    (found,) = (json.loads(line) for line in run([*measure, "--json"], folder).splitlines())
    by_loss = {(record["split"], record["loss"]): record["ppl_mean"] for record in found["records"]}
    assert all(by_loss[split, 0.0] < by_loss[split, 0.1] < by_loss[split, 0.3] for split in (4, 16))
    run(calibrate, folder)
    assert (folder / calibrate[-1]).stat().st_size > 0


def test_a_policy_is_trained_and_judged(folder: Path) -> None:
    train, evaluate = lines_of("edgectl rl")
    run(train, folder)
    assert "random" in run(evaluate, folder)


def test_controllers_are_held_against_each_other(folder: Path) -> None:
    (compare,) = lines_of("edgectl bench adaptive")
    assert "table" in run(compare, folder)
