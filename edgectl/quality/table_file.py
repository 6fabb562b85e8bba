"""A quality table from the file that a person names."""

from __future__ import annotations

from pathlib import Path

from edgectl.given_file import UnreadableFile, read_given
from rl.quality import MAX_CHARACTERS, BadQualityTable, QualityTable


def read_table(path: Path) -> QualityTable:
    """Raises BadQualityTable naming the file and what is wrong with it."""
    try:
        return QualityTable.from_json(read_given(path, MAX_CHARACTERS))
    except UnreadableFile as problem:
        raise BadQualityTable(str(path), str(problem)) from problem
    except BadQualityTable as problem:
        raise named(path, problem) from problem


def read_table_of(path: Path, model: str, digest: str, num_layers: int) -> QualityTable:
    """A table of this model. Raises BadQualityTable naming the file, and the other model where it is of one."""
    table = read_table(path)
    try:
        table.check_model(model, digest, num_layers)
    except BadQualityTable as problem:
        raise named(path, problem) from problem
    return table


def named(path: Path, problem: BadQualityTable) -> BadQualityTable:
    """The same problem, of a table that this file holds."""
    return BadQualityTable(str(path), str(problem).removeprefix("quality table: "))
