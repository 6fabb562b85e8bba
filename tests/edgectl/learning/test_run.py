"""Runs as files: what goes out comes back, decides alike, and nothing else comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import ConfigError
from edgectl.learning.run import PolicyRun, dump_run, load_decider, load_run, parse_run, write_run
from rl.authors_table import authors_gain
from rl.dense import forward
from rl.policy_card import BadPolicy
from rl.rollout import Starts, play
from rl.split_world import ACTIONS_3, AuthorsWorld
from tests.fakes.small_policy import random_network, small_card


def some_run() -> PolicyRun:
    return PolicyRun(small_card(), tuple(random_network([2, 8, 3], 1)), ((400, 2.5), (800, 2.75)), 1.25)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_run(path, some_run())
    again = load_run(path)
    assert (again.card, again.curve, again.train_s) == (some_run().card, some_run().curve, 1.25)
    rows = np.random.default_rng(2).normal(size=(5, 2))
    np.testing.assert_allclose(forward(again.layers, rows), forward(some_run().layers, rows), rtol=1e-6)


def test_a_run_and_its_policy_decide_alike(tmp_path: Path) -> None:
    world = AuthorsWorld(authors_gain(), splits=(1, 2, 4, 8, 16), actions=ACTIONS_3)
    starts = Starts.drawn(world, 200, 0)
    found = []
    for name in ("run.json", "policy.onnx"):
        write_run(tmp_path / name, some_run())
        card, decide = load_decider(tmp_path / name)
        assert card == some_run().card
        found.append(play(world, decide, starts).places)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 9}, "schema is 9"),
        ({"card": {}}, "schema is None"),
        ({"layers": []}, "3 that its card has moves for"),
        ({"layers": [{"weight": [[1.0]], "bias": [1.0], "activation": "none"}]}, r"layers\[0\]"),
        ({"curve": [1]}, r"\$.curve"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_text_that_is_no_run_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPolicy, match=said):
        parse_run(json.dumps(json.loads(dump_run(some_run())) | change))


def test_files_that_are_no_runs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(BadPolicy, match=r"run\.json: No such file"):
        load_run(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadPolicy, match=r"run\.json: no UTF-8"):
        load_run(path)
    path.write_text("{}")
    with pytest.raises(BadPolicy, match=r"run\.json: run: "):
        load_decider(path)


def test_names_that_say_nothing_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.onnx .* or \.json"):
        write_run(tmp_path / "policy.zip", some_run())
    with pytest.raises(ConfigError, match="no such folder"):
        write_run(tmp_path / "none" / "policy.onnx", some_run())
