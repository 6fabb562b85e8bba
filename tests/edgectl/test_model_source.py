"""What --model may be, and how it is described to the devices."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.errors import BadCheckpoint, ModelNotFound
from edgectl.model_source import HUB_ID, describe_model, locate_model
from tests.fakes.fake_engine import MODEL_DIR


def test_a_directory_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some-model").mkdir()
    located = locate_model(str(tmp_path / "some-model"))
    assert (located.name, located.directory) == ("some-model", tmp_path / "some-model")
    monkeypatch.chdir(tmp_path / "some-model")
    assert locate_model(".").name == "some-model"


@pytest.mark.parametrize("text", ["./absent", "/absent/model", "absent", "a/b/c", "-x/y", "a/../b"])
def test_neither_a_directory_nor_a_hub_id(text: str) -> None:
    with pytest.raises(ModelNotFound, match="no such directory"):
        locate_model(text)


@pytest.mark.parametrize("text", ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"])
def test_hub_ids(text: str) -> None:
    assert HUB_ID.fullmatch(text)


def test_the_digest_follows_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    copy = tmp_path / "wiki-32l"
    shutil.copytree(MODEL_DIR, copy)
    original, same = describe_model(locate_model(str(MODEL_DIR))), describe_model(locate_model(str(copy)))
    assert (same.name, same.digest, same.spec) == (original.name, original.digest, original.spec)
    config = copy / "config.json"
    config.write_text(config.read_text() + "\n")
    assert describe_model(locate_model(str(copy))).digest != original.digest


def test_progress_ends_at_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[tuple[int, int]] = []
    describe_model(locate_model(str(MODEL_DIR)), lambda done, total: seen.append((done, total)))
    assert seen
    assert seen[-1][0] == seen[-1][1]


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        describe_model(locate_model(str(tmp_path)))
