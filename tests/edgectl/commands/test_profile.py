"""`edgectl profile` on the command line: what it refuses before it measures, and show, diff and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.wire.security import generate_keys
from edgectl.failures import ExitCode
from edgectl.profile_store import FOLDER, save_profile
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.measured_devices import cluster_profile


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    edgectl("init", "--dir", str(tmp_path))
    path = tmp_path / "cluster.toml"
    edgectl("device", "add", "agx-1", generate_keys().public, "--cluster", str(path))
    path.write_text(path.read_text().replace('# state_dir = "state"', 'state_dir = "state"'))
    return path


@pytest.fixture
def stored(cluster: Path) -> Path:
    """An older and a newer profile in the cluster's state directory."""
    directory = cluster.parent / "state" / FOLDER
    save_profile(cluster_profile({"a": 1.0, "b": 2.0}, created="2026-11-20T12:00:00Z"), directory)
    return save_profile(cluster_profile({"a": 3.0, "b": 2.0}), directory)


@pytest.mark.parametrize(
    ("flags", "exit_code", "message"),
    [
        (("--device", "agx-7"), ExitCode.USAGE, "agx-7: cluster.toml has agx-1"),
        (("--model", "lama2-7b"), None, "llama2-7b"),
        (("--quantize", "int3"), ExitCode.USAGE, "int3"),
        (("--seconds", "0"), ExitCode.USAGE, "--seconds"),
        (("--wait", "0"), ExitCode.UNAVAILABLE, "agx-1: not connected"),
    ],
)
def test_what_cannot_be_measured_is_said(
    cluster: Path, flags: tuple[str, ...], exit_code: ExitCode | None, message: str
) -> None:
    result = edgectl("profile", "--cluster", str(cluster), *flags)
    assert result.exit_code == exit_code or (exit_code is None and result.exit_code)
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_the_default_model_is_said(cluster: Path) -> None:
    text = edgectl("profile", "--cluster", str(cluster), "--wait", "0").stderr
    assert "no --model: layers of the shape of tinyllama-1.1b are measured" in text
    given = edgectl("profile", "--cluster", str(cluster), "--wait", "0", "--model", str(MODEL_DIR)).stderr
    assert "no --model" not in given


def test_a_cluster_without_devices(tmp_path: Path) -> None:
    edgectl("init", "--dir", str(tmp_path))
    result = edgectl("profile", "--cluster", str(tmp_path / "cluster.toml"))
    assert result.exit_code == ExitCode.CONFIG
    assert "lists no device" in result.stderr


def test_show_prints_the_newest(cluster: Path, stored: Path) -> None:
    result = edgectl("profile", "show", "--cluster", str(cluster))
    assert result.exit_code == 0
    assert "measured 2026-11-21T12:00:00Z" in result.stdout
    assert "3.000" in result.stdout
    assert "stale: measured by edgectl 1.0.0" in result.stderr
    assert edgectl("profile", "show", str(stored)).stdout == result.stdout


def test_show_prints_json_as_it_lies(cluster: Path, stored: Path) -> None:
    shown = edgectl("profile", "show", "--cluster", str(cluster), "--json").stdout
    assert json.loads(shown) == json.loads(stored.read_text())


def test_no_profile_says_how_to_make_one(cluster: Path, stored: Path) -> None:
    result = edgectl("profile", "show", "--cluster", str(cluster), "--model", "other")
    assert result.exit_code == ExitCode.CONFIG
    assert "no profile of other" in result.stderr
    assert "`edgectl profile` makes one" in result.stderr


def test_diff_against_the_newest(cluster: Path, stored: Path) -> None:
    older = next(path for path in stored.parent.iterdir() if path != stored)
    result = edgectl("profile", "diff", str(older), "--cluster", str(cluster))
    assert "a decode ms, 1 rows at 32" in result.stdout
    assert "+200 %" in result.stdout
    assert edgectl("profile", "diff", str(stored), str(stored)).stdout == "no difference\n"


def test_export_is_csv_on_stdout_or_in_a_file(cluster: Path, stored: Path, tmp_path: Path) -> None:
    text = edgectl("profile", "export", str(stored)).stdout
    assert text.startswith("kind,device,peer,rows,context,tokens,ms,")
    out = tmp_path / "points.csv"
    assert edgectl("profile", "export", "--cluster", str(cluster), "--out", str(out)).stdout == ""
    assert out.read_text() == text
    refused = edgectl("profile", "export", str(stored), "--out", str(tmp_path / "absent" / "x.csv"))
    assert refused.exit_code == ExitCode.CONFIG


def test_a_broken_profile_names_file_and_field(stored: Path) -> None:
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"schema": 99}))
    result = edgectl("profile", "show", str(stored))
    assert result.exit_code != 0
    assert str(stored) in result.stderr
    assert "schema" in result.stderr
