"""Epochs grow within a start and over starts, and the start is on disk before the first one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.wire.codec import MAX_EPOCH
from edgectl.epochs import MAX_START, Epochs, count_start


def test_epochs_grow_over_restarts(tmp_path: Path) -> None:
    given = []
    for _ in range(3):
        epochs = Epochs(count_start(tmp_path))
        given += [epochs.next() for _ in range(4)]
    assert given == sorted(set(given))


def test_the_last_epoch_fits_the_frame_header() -> None:
    assert ((MAX_START + 1) << 32) - 1 <= MAX_EPOCH
    assert Epochs(MAX_START).next() < MAX_EPOCH


@pytest.mark.parametrize("start", [0, -1, MAX_START + 1])
def test_a_start_outside_its_range_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Epochs(start)


def test_the_state_directory_is_made_private(tmp_path: Path) -> None:
    assert count_start(tmp_path / "a" / "b") == 1
    assert count_start(tmp_path / "a" / "b") == 2
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["start_counter"]


def test_a_damaged_counter_is_not_started_over(tmp_path: Path) -> None:
    (tmp_path / "start_counter").write_text("twelve")
    with pytest.raises(ConfigError, match="start_counter: holds no number"):
        count_start(tmp_path)
    assert (tmp_path / "start_counter").read_text() == "twelve"


def test_a_place_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir"):
        count_start(tmp_path / "file")
