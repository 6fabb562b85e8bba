"""A table comes back whole, and what is wrong with a file is said once, with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgectl.quality.table_file import read_table, read_table_of
from rl.quality import BadQualityTable
from tests.fakes.quality_tables import known_table


def test_a_table_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(known_table().to_json())
    assert read_table(path) == known_table()


@pytest.mark.parametrize(("data", "words"), [(b"\xff", "no UTF-8 at byte 0"), (b"{}", "missing required field")])
def test_a_file_that_is_none(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(data)
    with pytest.raises(BadQualityTable, match=words) as caught:
        read_table(path)
    assert str(caught.value).count("quality table") == 1
    assert str(caught.value).count("table.json") == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadQualityTable, match=r"none\.json: No such file"):
        read_table(tmp_path / "none.json")


def test_a_table_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(known_table().to_json())
    assert read_table_of(path, "tiny", "ab" * 32, 32) == known_table()
    with pytest.raises(BadQualityTable, match=r"^quality table: \S+table\.json: .*tiny"):
        read_table_of(path, "other", "cd" * 32, 32)
