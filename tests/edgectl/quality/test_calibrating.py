"""Calibration of a model: what it learns, where it is written, and what it is good for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.compute.calibration import Calibrations
from agent.errors import ConfigError
from edgectl.quality.calibrating import calibrate_model, calibration_subject
from edgectl.quality.collect import CollectSettings, collect_records
from edgectl.quality.perplexity import MeasuredText, load_meter
from edgectl.quality.points import ChannelKind, Runs, grid
from edgectl.quality.text_windows import CALIBRATION_TEXT
from planner.types import LayerRange

WIKI = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "wiki-32l"
    directory.mkdir()
    for file in WIKI.iterdir():
        (directory / file.name).symlink_to(file)
    return directory


@pytest.fixture(scope="module")
def calibrated(linked: Path) -> Path:
    """The bundled model with a calibration of two boundaries beside it."""
    told: list[tuple[int, int]] = []
    subject = calibration_subject(str(linked), None, 2048, 128)
    path, size_bytes = calibrate_model(subject, (16, 4), None, lambda *step: told.append(step))
    assert path == linked.parent / "wiki-32l.calibration.safetensors"
    assert path.stat().st_size == size_bytes
    assert told == [(done, 16) for done in range(1, 17)]
    return linked


def test_it_is_of_the_hidden_states(calibrated: Path) -> None:
    subject = calibration_subject(str(calibrated), CALIBRATION_TEXT, 2048, 128)
    found = Calibrations(calibrated.parent / "wiki-32l.calibration.safetensors", subject.model.digest, 128)
    assert found.layers == (4, 16)
    meter = load_meter(subject, (4, 16))
    for layer in found.layers:
        calibration = found.at(layer)
        assert calibration is not None
        assert calibration.tokens == 2048
        hidden = [
            meter.executor.forward(LayerRange(0, layer), meter.executor.embed(window[None]), 0, [0])[0].copy()
            for window in meter.windows
        ]
        np.testing.assert_allclose(calibration.mean, np.concatenate(hidden).mean(axis=0), rtol=1e-3, atol=1e-4)
    meter.executor.close()


def test_what_was_learnt_mends_more_than_half_of_the_damage(calibrated: Path) -> None:
    settings = CollectSettings(
        model=str(calibrated),
        points=grid((4,), (0.0, 0.1)),
        text=MeasuredText(tokens=512, window=128),
        runs=Runs(count=1),
    )
    rise = {}
    for kind in (ChannelKind(), ChannelKind(concealment="rescale"), ChannelKind(concealment="lmmse")):
        clean, lossy = collect_records(replace(settings, channel=kind), None, lambda *_: None).records
        rise[kind.concealment] = lossy.ppl_mean - clean.ppl_mean
    assert rise["lmmse"] < 0.5 * rise["rescale"] < 0.5 * rise["zero"]


def test_a_split_that_is_not_calibrated_is_named(calibrated: Path) -> None:
    settings = CollectSettings(
        model=str(calibrated),
        points=grid((4, 5), (0.1,)),
        channel=ChannelKind(concealment="lmmse"),
        text=MeasuredText(tokens=64, window=32),
    )
    with pytest.raises(ConfigError, match="not calibrated behind layer 5"):
        collect_records(settings, None, lambda *_: None)


def test_layers_and_places_that_are_none(linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = calibration_subject(str(linked), None, 64, 32)
    with pytest.raises(ConfigError, match="split 32"):
        calibrate_model(subject, (4, 32), None, lambda *_: None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*file"):
        calibrate_model(subject, (4,), tmp_path / "file" / "c", lambda *_: None)
    monkeypatch.setattr("edgectl.quality.calibrating.MAX_CALIBRATED_BYTES", 2 * 128 * 128 * 8)
    with pytest.raises(ConfigError, match="3 layers of hidden size 128, at most 2 at once"):
        calibrate_model(subject, (1, 2, 3), None, lambda *_: None)
