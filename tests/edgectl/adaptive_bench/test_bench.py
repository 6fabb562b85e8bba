"""The comparison with scripted runs: what is started, what is scored, and that a lie about tokens is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.adaptive_bench.bench import Entrants, compare, contenders, static_table
from rl.quality import QualityTable
from tests.fakes.adaptive_comparison import SPLITS, compared, offline, scripted, table, trial


def test_every_controller_runs_once_with_its_own_file(tmp_path: Path) -> None:
    seen, run = scripted()
    entrants = Entrants(names=("policy", "static", "table"), table=table(), policy=Path("p.onnx"))
    found = compare(tmp_path, trial(), entrants, offline(), say=lambda _: None, run=run)
    assert [contender.name for contender in seen] == ["static", "policy", "table"]
    by_name = {contender.name: contender.serve for contender in seen}
    assert by_name["policy"] == ("--policy", "p.onnx", "--controller", "policy")
    assert by_name["table"] == ("--policy", str(tmp_path / "quality.json"), "--controller", "table")
    assert QualityTable.from_json((tmp_path / "quality.json").read_text()) == table()
    kept = QualityTable.from_json(Path(by_name["static"][1]).read_text())
    assert kept.splits == (found.best_static,)


def test_rows_say_what_each_run_was_worth(tmp_path: Path) -> None:
    found = compared(tmp_path)
    static, looked_up, policy = found.rows
    assert found.best_static in SPLITS
    assert (static.moves, looked_up.moves, policy.moves) == (0, 1, 2)
    assert looked_up.mean_split == pytest.approx((4 * 7 + 2 * 9) / 16)
    assert static.quality == found.statics[2]
    assert all(row.same_tokens for row in found.rows)
    assert len({row.quality.ppl for row in found.rows}) == 3


def test_tokens_that_are_not_the_schedules_are_told_apart(tmp_path: Path) -> None:
    assert compared(tmp_path, "table", lies=True).rows[0].same_tokens is False


def test_the_best_split_that_stays_has_the_most_reward(tmp_path: Path) -> None:
    found = compared(tmp_path, "static")
    ppls = {split: quality.ppl for split, quality in found.statics.items()}
    worth = {split: -10 * ppl + (4 - split) / 4 for split, ppl in ppls.items()}
    assert len(set(ppls.values())) == len(SPLITS)
    assert found.best_static == max(worth, key=worth.__getitem__)
    assert found.best_static == max(found.static_rewards, key=found.static_rewards.__getitem__)


def test_a_controller_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="controller 'oracle' is none of static, table"):
        contenders(["oracle"], Path("q.json"), None)
    with pytest.raises(ConfigError, match="with --policy"):
        contenders(["policy"], Path("q.json"), None)


def test_a_table_of_one_split_is_of_one_it_has() -> None:
    assert static_table(table(), 4).splits == (4,)
    with pytest.raises(ConfigError, match=r"split 3 is not in the quality table: 2, 4"):
        static_table(table(), 3)
