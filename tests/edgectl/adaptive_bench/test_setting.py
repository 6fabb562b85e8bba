"""From a wish to a comparison on the bundled model, with scripted sessions; files of another model are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError
from edgectl.adaptive_bench.bench import Run
from edgectl.adaptive_bench.damage_replay import load_all_layers, replay
from edgectl.adaptive_bench.run import Contender, LiveRun, Trial, recorded
from edgectl.adaptive_bench.setting import PROMPT_TOKENS, Wish, fulfil, table_of, text_end
from edgectl.model_source import describe_model, locate_model
from edgectl.planning import ServedModel, ServingOptions
from edgectl.quality.text_windows import read_text, windows_of
from planner.channel import erasing
from rl.quality import QualityRecord, QualityTable
from tests.fakes.fake_engine import MODEL_DIR


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return describe_model(locate_model(str(MODEL_DIR)))


@pytest.fixture(scope="module")
def table(model: ServedModel) -> QualityTable:
    records = tuple(
        QualityRecord(split, loss, 0.0, "element", "rescale", "fp16", (50.0 + split * loss,), 64)
        for split in (4, 16)
        for loss in (0.0, 0.3)
    )
    return QualityTable(model.name, model.digest, 32, 256, records)


@pytest.fixture
def quality(tmp_path: Path, table: QualityTable) -> Path:
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    return path


@pytest.fixture
def scripted() -> Iterator[Run]:
    """Sessions that move once, with the tokens the model then has."""
    executor = load_all_layers(locate_model(str(MODEL_DIR)), ServingOptions(), PROMPT_TOKENS + 16, (4, 16))

    def run(directory: Path, trial: Trial, contender: Contender) -> LiveRun:
        schedule = ((0, 4), (PROMPT_TOKENS + 3, 16))
        return LiveRun(contender, tuple(replay(executor, recorded(trial, schedule))), (5.0,), schedule, {})

    yield run
    executor.close()


def test_a_wish_is_fulfilled_with_the_model_here(quality: Path, tmp_path: Path, scripted: Run) -> None:
    said: list[str] = []
    wish = Wish(
        model=str(MODEL_DIR), quality=quality, channel=erasing(0.2, 1), tokens=9, text_tokens=80, conceals_as_table=True
    )
    found = fulfil(wish, tmp_path, said.append, scripted)
    assert [row.name for row in found.rows] == ["static", "table", "planner"]
    assert found.trial.channel.concealment == "rescale"
    row = found.rows[1]
    assert (row.moves, row.same_tokens) == (1, True)
    assert len(row.quality.segments) == 2
    ppls = [found.statics[4].ppl, found.statics[16].ppl]
    assert found.clean.ppl < min(ppls)
    assert row.quality.ppl != pytest.approx(found.clean.ppl)
    assert any("cut at 4, 16" in line for line in said)


def test_schedules_are_scored_where_no_table_is_measured(model: ServedModel) -> None:
    end = text_end(MODEL_DIR, model, 3, 64)
    assert end.shape == (3, 64)
    text = windows_of(read_text(None), MODEL_DIR, 4096, tokens=None, window=64).windows
    assert (end == text[-3:]).all()
    with pytest.raises(ConfigError, match="are asked for"):
        text_end(MODEL_DIR, model, len(text) + 1, 64)


@pytest.mark.parametrize(
    ("changes", "named"), [({"rate": "fast"}, "--rate fast"), ({"latency_ms": 1e9}, "--latency-ms")]
)
def test_what_no_radio_is_like_is_refused_before_anything_is_loaded(
    quality: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    wish = Wish(model=str(MODEL_DIR), quality=quality, channel=erasing(0.2), tokens=9, **changes)
    with pytest.raises(ConfigError, match=named):
        fulfil(wish, tmp_path, pytest.fail)


def test_more_tokens_than_the_model_has_positions_are_refused(quality: Path, tmp_path: Path) -> None:
    wish = Wish(model=str(MODEL_DIR), quality=quality, channel=erasing(0.2), tokens=2040)
    with pytest.raises(ConfigError, match="2048 positions"):
        fulfil(wish, tmp_path, lambda _: None)


def test_a_policy_that_is_none_is_refused_before_anything_is_loaded(quality: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").write_bytes(b"nonsense")
    wish = Wish(model=str(MODEL_DIR), quality=quality, channel=erasing(0.2), tokens=9, policy=tmp_path / "policy.onnx")
    with pytest.raises(ConfigError, match=r"policy\.onnx"):
        fulfil(wish, tmp_path, pytest.fail)


def test_a_table_of_another_model_is_refused_by_name(model: ServedModel, table: QualityTable, quality: Path) -> None:
    assert table_of(quality, model) == table
    quality.write_text(replace(table, digest="0" * 64).to_json())
    with pytest.raises(ConfigError, match="measured on wiki-32l 000000000000"):
        table_of(quality, model)
    quality.write_text(replace(table, num_layers=24).to_json())
    with pytest.raises(ConfigError, match="num_layers"):
        table_of(quality, model)


def test_a_split_behind_the_last_layer_is_refused(model: ServedModel, table: QualityTable, quality: Path) -> None:
    records = tuple(replace(record, split=32) if record.split == 16 else record for record in table.records)
    quality.write_text(replace(table, records=records).to_json())
    with pytest.raises(ConfigError, match="split 32 leaves the edge no layer"):
        table_of(quality, model)


@pytest.mark.parametrize(
    ("data", "words"), [(b"{", "table.json"), (b"\xff", "no UTF-8 at byte 0"), (b'{"schema": 1}', "table.json")]
)
def test_what_is_no_table_is_refused(model: ServedModel, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "table.json").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        table_of(tmp_path / "table.json", model)
    with pytest.raises(ConfigError, match="No such file"):
        table_of(tmp_path / "absent.json", model)
