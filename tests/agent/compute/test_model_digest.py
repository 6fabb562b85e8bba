"""The model digest: what changes it, what does not, and that its cache can be broken but not wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.compute.model_digest import READ_BYTES, model_digest
from agent.errors import BadCheckpoint

LONG_AGO_NS = 1_700_000_000_000_000_000


def write_weights(path: Path, values: np.ndarray, name: str = "w") -> None:
    offsets = [0, values.nbytes]
    header = json.dumps({name: {"dtype": "F32", "shape": list(values.shape), "data_offsets": offsets}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.astype(np.float32).tobytes())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text('{"model": {}}')
    write_weights(path / "model.safetensors", np.arange(6, dtype=np.float32))
    age(path / "model.safetensors")
    return path


def age(path: Path) -> None:
    """Make a file look written long ago, as a model's are."""
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def test_a_copy_has_the_same_digest_with_and_without_cache(model: Path, tmp_path: Path) -> None:
    digest = model_digest(model)
    assert len(digest) == 64
    assert int(digest, 16)
    copy = shutil.copytree(model, tmp_path / "copy")
    cache_dir = tmp_path / "cache"
    assert [model_digest(copy, cache_dir), model_digest(copy, cache_dir), model_digest(copy)] == [digest] * 3


def weights_bytes(path: Path) -> int:
    return (path / "model.safetensors").stat().st_size


CHANGES: dict[str, Callable[[Path], object]] = {
    "config": lambda path: (path / "config.json").write_text("{ }"),
    "tokenizer": lambda path: (path / "tokenizer.json").write_text("{}"),
    "no tokenizer": lambda path: (path / "tokenizer.json").unlink(),
    "content": lambda path: write_weights(path / "model.safetensors", np.arange(1, 7, dtype=np.float32)),
    "header": lambda path: write_weights(path / "model.safetensors", np.arange(6, dtype=np.float32), name="v"),
    "trailing byte": lambda path: (path / "model.safetensors").write_bytes(
        (path / "model.safetensors").read_bytes() + b"x"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_changes_the_digest(model: Path, tmp_path: Path, change: str) -> None:
    cache_dir = tmp_path / "cache"
    before = model_digest(model, cache_dir)
    CHANGES[change](model)
    after = model_digest(model, cache_dir)
    assert after != before
    assert after == model_digest(model)


def test_every_shard_counts_under_its_name(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    digests = []
    for first, second in (("a", "b"), ("b", "a"), ("b", "c")):
        write_weights(model / f"{first}.safetensors", np.zeros(6, np.float32), name="v")
        write_weights(model / f"{second}.safetensors", np.ones(6, np.float32), name="w")
        weight_map = {"v": f"{first}.safetensors", "w": f"{second}.safetensors"}
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        digests.append(model_digest(model))
    assert len(set(digests)) == 3


def test_files_that_do_not_make_the_model_do_not_count(model: Path) -> None:
    before = model_digest(model)
    (model / "README.md").write_text("text")
    (model / "other.safetensors").write_bytes(b"not read")
    assert model_digest(model) == before


def test_the_cache_is_used_and_private(model: Path, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    digest = model_digest(model, cache_dir)
    (entry,) = cache_dir.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache_dir.stat().st_mode) == 0o700
    content = json.loads(entry.read_text())
    # A digest that only the cache can have told: it was believed.
    entry.write_text(json.dumps({**content, "sha256": "0" * 64}))
    assert model_digest(model, cache_dir) != digest
    # Another modification time is another file.
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert model_digest(model, cache_dir) == digest


def test_a_file_written_a_moment_ago_is_not_remembered(model: Path, tmp_path: Path) -> None:
    """Same size, same inode and, within one tick of the clock, the same time: only the content differs."""
    cache_dir = tmp_path / "cache"
    for values in (np.zeros(6, np.float32), np.ones(6, np.float32)):
        write_weights(model / "model.safetensors", values)
        assert model_digest(model, cache_dir) == model_digest(model)
        assert list(cache_dir.iterdir()) == []


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b"null", b'{"file": {}}', b"\xff", b"[" * 100_000, "sha256", "digits"]
)
def test_a_broken_cache_is_ignored_and_repaired(model: Path, tmp_path: Path, broken: bytes | str) -> None:
    cache_dir = tmp_path / "cache"
    digest = model_digest(model, cache_dir)
    (entry,) = cache_dir.iterdir()
    whole = entry.read_bytes()
    if isinstance(broken, str):
        content = json.loads(whole)
        content["sha256"] = None if broken == "sha256" else "g" * 64
        broken = json.dumps(content).encode()
    entry.write_bytes(broken)
    assert model_digest(model, cache_dir) == digest
    assert entry.read_bytes() == whole
    assert list(cache_dir.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_is_reported_not_fatal(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    occupied = tmp_path / "cache"
    occupied.write_text("a file where a directory should be")
    with caplog.at_level(logging.WARNING):
        assert model_digest(model, occupied) == model_digest(model)
    assert "digest_not_cached" in caplog.text


def test_progress_goes_from_nothing_to_everything(model: Path, tmp_path: Path) -> None:
    write_weights(model / "model.safetensors", np.zeros(READ_BYTES // 2, np.float32))
    size = (model / "model.safetensors").stat().st_size
    age(model / "model.safetensors")
    for expected_reports in (3, 1):  # two whole reads and a rest; then one from the cache
        reports: list[tuple[int, int]] = []
        model_digest(model, tmp_path / "cache", lambda done, total, seen=reports: seen.append((done, total)))
        assert len(reports) == expected_reports
        assert reports[-1] == (size, size)
        assert reports == sorted(reports)


def test_a_file_that_changes_while_it_is_read_is_refused(model: Path) -> None:
    write_weights(model / "model.safetensors", np.zeros(READ_BYTES // 2, np.float32))

    def append(done: int, total: int) -> None:
        with (model / "model.safetensors").open("ab") as file:
            file.write(b"x")

    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: changed while it was read"):
        model_digest(model, None, append)


def test_what_is_missing_or_malformed_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"config\.json: cannot be read"):
        model_digest(model)
    (model / "model.safetensors").write_bytes(b"short")
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: truncated"):
        model_digest(model)
