"""A model and a text on this machine: what is found, what is loaded, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.compute.calibration import calibration_file, write_calibrations
from agent.errors import BadCheckpoint, ConfigError, ModelMismatch, ModelNotFound
from edgectl.quality.perplexity import (
    MeasuredText,
    calibrations_of,
    check_calibrated,
    check_splits,
    default_splits,
    find_subject,
    load_meter,
)
from edgectl.quality.points import ModelKind
from planner.channel import erasing
from planner.types import LayerRange

WIKI = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"
SMALL = MeasuredText(tokens=64, window=32)


def test_a_subject_says_what_is_measured() -> None:
    subject = find_subject(str(WIKI), ModelKind(), SMALL)
    assert (subject.model.name, subject.window, subject.scored) == ("wiki-32l", 32, 62)
    assert subject.located.directory == WIKI
    everything = find_subject(str(WIKI), ModelKind(), MeasuredText(tokens=None))
    assert everything.text.tokens > 50_000
    assert (everything.text.windows[0, :32] == subject.text.windows[0]).all()


def test_the_meter_is_cut_where_it_is_asked_to_be() -> None:
    subject = find_subject(str(WIKI), ModelKind(boundary="fp32", codec="int8"), SMALL)
    done: list[tuple[int, int]] = []
    meter = load_meter(subject, (9, 4, 9), lambda at, total: done.append((at, total)))
    assert done[-1] == (32, 32)
    assert meter.codec == "int8"
    assert meter.executor.resident == (LayerRange(0, 32),)
    assert meter.at(4, None) != meter.at(9, None), "the wire rounds at another place"
    with pytest.raises(ValueError, match="not resident whole blocks"):
        meter.at(5, None)
    meter.executor.close()


def test_splits_of_a_model() -> None:
    assert default_splits(str(WIKI)) == (1, 2, 4, 8, 16, 31)
    subject = find_subject(str(WIKI), ModelKind(), SMALL)
    check_splits(subject, (1, 31))
    for split in (0, 32, -1):
        with pytest.raises(ConfigError, match=f"split {split}: wiki-32l has 32 layers and so the splits 1 to 31"):
            check_splits(subject, (4, split))
        with pytest.raises(ConfigError, match=f"split {split}"):
            load_meter(subject, (split,))


def test_models_and_texts_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        find_subject("/nowhere", ModelKind(), SMALL)
    with pytest.raises(BadCheckpoint):
        find_subject(str(tmp_path), ModelKind(), SMALL)
    with pytest.raises(ConfigError, match="No such file"):
        find_subject(str(WIKI), ModelKind(), replace(SMALL, path=tmp_path / "none"))
    with pytest.raises(ConfigError, match="--window 2049: wiki-32l has 2048 positions"):
        find_subject(str(WIKI), ModelKind(), MeasuredText(window=2049))


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """The bundled model in a place of its own, beside which nothing lies yet."""
    directory = tmp_path / "models" / "wiki-32l"
    directory.mkdir(parents=True)
    for file in WIKI.iterdir():
        (directory / file.name).symlink_to(file)
    return directory


def test_a_calibration_lies_beside_the_model_and_is_of_this_one(linked: Path) -> None:
    subject = find_subject(str(linked), ModelKind(), SMALL)
    assert calibrations_of(subject) is None
    with pytest.raises(ConfigError, match=r"is not calibrated behind layer 4, .*edgectl eval calibrate"):
        check_calibrated(subject, None, (4,))
    write_calibrations(calibration_file(linked.parent, "wiki-32l"), (), "wiki-32l", subject.model.digest)
    assert calibrations_of(subject) is not None
    with pytest.raises(ConfigError, match="behind layer 4"):
        check_calibrated(subject, calibrations_of(subject), (4,))
    write_calibrations(calibration_file(linked.parent, "wiki-32l"), (), "other", "0" * 64)
    with pytest.raises(ModelMismatch, match="calibration of other"):
        calibrations_of(subject)
    meter = load_meter(subject, (4,))
    assert meter.at(4, erasing(0.1)) > 1.0, "what needs none is not troubled by one of another model"
    meter.executor.close()
