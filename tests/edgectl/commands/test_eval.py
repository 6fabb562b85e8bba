"""`edgectl eval` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.command_line import edgectl

WIKI = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"
PPL = ("eval", "ppl", "--model", str(WIKI), "--tokens", "128", "--window", "64", "--runs", "2")


def test_a_table_a_picture_and_what_is_kept(tmp_path: Path) -> None:
    asked = (*PPL, "--splits", "4,31", "--loss", "0,0.2", "--out", str(tmp_path), "--plot", str(tmp_path / "p.svg"))
    result = edgectl(*asked)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("wiki-32l: 128 tokens in windows of 64, 2 runs, element loss, zero, fp16")
    assert [line.split()[:2] for line in lines[2:]] == [["4", "0"], ["4", "0.2"], ["31", "0"], ["31", "0.2"]]
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    kept = (tmp_path / "wiki-32l.jsonl").read_bytes()
    assert edgectl(*asked).stdout == result.stdout
    assert (tmp_path / "wiki-32l.jsonl").read_bytes() == kept


def test_json_is_a_line_per_model_and_the_noise_is_as_asked() -> None:
    result = edgectl(*PPL, "--model", str(WIKI), "--splits", "4", "--m", "1", "--snr-db", "5", "--runs", "1", "--json")
    assert result.exit_code == 0, result.stderr
    first, second = map(json.loads, result.stdout.splitlines())
    assert first == second
    (record,) = first["records"]
    assert (record["m"], record["snr_db"], record["split"]) == (1.0, 5.0, 4)
    assert record["loss"] == pytest.approx(0.1393, abs=1e-4)


def test_everything_has_a_default() -> None:
    result = edgectl("eval", "ppl", "--model", str(WIKI), "--loss", "0", "--tokens", "256", "--json")
    (found,) = map(json.loads, result.stdout.splitlines())
    assert [record["split"] for record in found["records"]] == [1, 2, 4, 8, 16, 31]
    assert len({record["ppl_mean"] for record in found["records"]}) == 1, "a hop in the boundary type changes nothing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--splits", "0"), "split 0: wiki-32l has 32 layers"),
        (("--splits", "32"), "split 32"),
        (("--splits", "x"), "--splits x: 'x' is no number"),
        (("--loss", "1.5"), "--loss 1.5 is no probability"),
        (("--loss", "-1"), "--loss -1 is no probability"),
        (("--m", "0.4"), "--m 0.4: a Nakagami distribution has 0.5 or more"),
        (("--sigma", "-1"), "--sigma -1"),
        (("--snr-db", "1000"), "--snr-db 1000"),
        (("--runs", "0"), "--runs 0"),
        (("--window", "1"), "--window 1"),
        (("--packet-bytes", "1", "--granularity", "packet"), "packets of 1 bytes"),
        (("--text", "/nowhere.txt"), "--text /nowhere.txt: No such file"),
        (("--text", str(WIKI / "model.safetensors")), "no UTF-8"),
        (("--plot", "p.txt"), "has to end with"),
        (("--model", "/nowhere"), "/nowhere"),
        (("--cluster", "/nowhere.toml"), "/nowhere.toml"),
        (("--mitigation", "lmmse", "--splits", "4", "--out", "/proc/x"), "--out /proc/x"),
    ],
)
def test_what_cannot_be_measured_is_named_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    result = edgectl(*PPL, *arguments)
    assert result.exit_code not in (0, 1), result.stdout
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_losses_twice() -> None:
    result = edgectl(*PPL, "--m", "1", "--loss", "0.1")
    assert result.exit_code == 2
    assert "name one of the two" in result.stderr


def test_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    result = edgectl(*PPL, "--text", str(tmp_path / "empty"))
    assert result.exit_code == 3
    assert "the file is empty" in result.stderr


def test_calibrate_then_mend(tmp_path: Path) -> None:
    directory = tmp_path / "wiki-32l"
    directory.mkdir()
    for file in WIKI.iterdir():
        (directory / file.name).symlink_to(file)
    model = ("--model", str(directory))
    result = edgectl("eval", "calibrate", *model, "--splits", "4", "--tokens", "512")
    assert result.exit_code == 0, result.stderr
    assert f"wrote {tmp_path / 'wiki-32l.calibration.safetensors'}, 1 MiB" in result.stderr
    asked = ("eval", "ppl", *model, "--tokens", "256", "--loss", "0.1", "--runs", "1", "--mitigation", "lmmse")
    assert edgectl(*asked, "--splits", "4").exit_code == 0
    refused = edgectl(*asked, "--splits", "5")
    assert "not calibrated behind layer 5" in refused.stderr
    assert refused.exit_code == 3
