"""The study's folder and its sections; that it runs is tests/cluster/test_splitting_quick.py's to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.output import CommandFailure, progress_bar
from edgectl.splitting import study
from edgectl.splitting.report import report_markdown
from edgectl.splitting.results import Study
from edgectl.splitting.study import StudySettings, run_study, sections
from tests.fakes.canned_evidence import canned_evidence


def settings(out: Path, *, quick: bool = True, seeds: int | None = None, resume: bool = False) -> StudySettings:
    return StudySettings(model="nowhere", out=out, quick=quick, seeds=seeds, resume=resume)


def test_an_earlier_study_is_never_overwritten(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "quick" / "seconds.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    with pytest.raises(ConfigError, match="--resume goes on with it"):
        run_study(settings(tmp_path), progress_bar)
    # Any other trouble lies behind that check.
    with pytest.raises(Exception, match="nowhere"):
        run_study(settings(tmp_path, resume=True), progress_bar)
    with pytest.raises(Exception, match="nowhere"):
        run_study(settings(tmp_path, quick=False), progress_bar)
    assert (tmp_path / "cache" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        run_study(settings(tmp_path / "file"), progress_bar)


def test_without_the_libraries_that_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "LEARNERS_NEED", ("torch", "a_library_that_is_not_there"))
    with pytest.raises(CommandFailure, match="needs a_library_that_is_not_there to train") as refused:
        run_study(settings(tmp_path), progress_bar)
    assert "edgectl[rl]" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_seeds_and_the_command_that_makes_it_again(tmp_path: Path) -> None:
    assert settings(tmp_path, quick=False).command == "edgectl reproduce splitting"
    few = settings(tmp_path, quick=False, seeds=2)
    assert few.command == "edgectl reproduce splitting --seeds 2"
    assert (few.size.seeds, few.size.sweep_seeds) == (2, 2)
    assert settings(tmp_path, quick=False, seeds=9).size.sweep_seeds == 3
    with pytest.raises(ConfigError, match="--seeds 0"):
        settings(tmp_path, seeds=0)


def test_a_section_per_figure_and_table_of_the_paper(tmp_path: Path) -> None:
    written = sections(canned_evidence())
    keys = [section.key for section in written]
    assert len(set(keys)) == len(keys)
    assert {f"figure-{number}" for number in (3, 5, 6, 7, 8, 9)} | {"table-iv", "harder-world"} <= set(keys)
    study = Study("full", "edgectl reproduce splitting", "m", "2 cores", (), written, ())
    text = report_markdown(study, {}, tmp_path)
    assert all(f"## {section.title}" in text for section in written)
