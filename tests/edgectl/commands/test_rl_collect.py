"""`edgectl rl collect`: a small grid on the bundled model, again for nothing, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.compute.calibration import calibrate, calibration_file, write_calibrations
from edgectl.failures import ExitCode
from edgectl.model_source import describe_model, locate_model
from rl.quality import QualityTable
from tests.fakes.command_line import edgectl

MODEL = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"


def test_a_grid_is_measured_once_and_read_again(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    arguments: tuple[str, ...] = (
        "rl",
        "collect",
        "--model",
        str(MODEL),
        "--splits",
        "1,31",
        "--loss",
        "0,0.3",
        "--sigma",
        "5",
    )
    arguments = (*arguments, "--runs", "1", "--tokens", "256", "--out", str(out))
    found = edgectl(*arguments)
    assert found.exit_code == 0, found.output
    table = QualityTable.from_json(out.read_text())
    assert (table.splits, table.losses, table.sigmas, table.num_layers) == ((1, 31), (0.0, 0.3), (5.0,), 32)
    kept = out.with_name("table.json.records.jsonl")
    before = kept.read_bytes()
    assert edgectl(*arguments).exit_code == 0
    assert kept.read_bytes() == before
    assert QualityTable.from_json(out.read_text()) == table
    # Noise of fixed size drowns what leaves an early layer, whose hidden states are small (equation 3).
    assert table.ppl(0.3, 1.0, 5.0) > table.ppl(0.3, 31.0, 5.0)


def test_what_is_lost_is_concealed_as_serving_does_unless_said_otherwise(tmp_path: Path) -> None:
    """Rescaled where the model is not calibrated, lmmse where it is behind every split; zero, the paper's, by name."""
    model = tmp_path / MODEL.name
    model.mkdir()
    for file in MODEL.iterdir():
        (model / file.name).symlink_to(file)

    def measured(name: str, *more: str) -> tuple[str, str]:
        out = tmp_path / name
        grid = ("--splits", "4", "--loss", "0.2", "--sigma", "0", "--no-fading", "--runs", "1", "--tokens", "256")
        found = edgectl("rl", "collect", "--model", str(model), "--out", str(out), *grid, *more)
        assert found.exit_code == 0, found.output
        return QualityTable.from_json(out.read_text()).records[0].mitigation, found.stderr

    assert measured("uncalibrated.json")[0] == "rescale"
    hidden = np.random.default_rng(0).normal(size=(400, 128)).astype(np.float32)
    digest = describe_model(locate_model(str(model))).digest
    write_calibrations(calibration_file(tmp_path, model.name), [calibrate(hidden, 4)], model.name, digest)
    mitigation, said = measured("calibrated.json")
    assert mitigation == "lmmse"
    assert "concealed by lmmse" in said
    assert measured("paper.json", "--mitigation", "zero")[0] == "zero"
    refused = edgectl("rl", "collect", "--model", str(model), "--out", str(tmp_path / "x"), "--mitigation", "hope")
    assert refused.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("option", "value"),
    [("--splits", "0,40"), ("--loss", "1.5"), ("--loss", "x"), ("--loss", "0.9"), ("--sigma", "-1")],
)
def test_numbers_that_cannot_be_are_named(tmp_path: Path, option: str, value: str) -> None:
    found = edgectl("rl", "collect", "--model", str(MODEL), "--out", str(tmp_path / "t.json"), option, value)
    assert found.exit_code in (ExitCode.CONFIG, ExitCode.MODEL, ExitCode.USAGE), found.output
    assert "Traceback" not in found.output
    assert not list(tmp_path.iterdir())
