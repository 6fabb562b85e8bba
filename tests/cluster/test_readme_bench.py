"""README's `edgectl bench` lines as a person types them, on real agents."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.cluster_processes import ClusterProcesses
from tests.fakes.fake_engine import MODEL_DIR

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
README_URL = "http://127.0.0.1:8080"


def line_of(subcommand: str) -> list[str]:
    """README's one line that begins with `edgectl bench SUBCOMMAND`."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"edgectl bench {subcommand}")]
    return shlex.split(line)


def run(words: list[str]) -> dict[str, object]:
    """What the command says with --json."""
    command = [str(Path(sys.executable).parent / words[0]), *words[1:], "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    parsed: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return parsed


def test_a_load_on_a_running_cluster(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, ("a", "b")) as processes:
        processes.start_all()
        words = [processes.url if word == README_URL else word for word in line_of("serve")]
        report = run(words)
    sessions = report["sessions"]
    assert isinstance(sessions, dict)
    assert sessions["completed"] == sessions["offered"] > 0


def test_a_row_of_edgeshards_table() -> None:
    report = run(line_of("edgeshard"))
    (row,) = report["rows"]  # type: ignore[misc]
    assert row["measured"] == pytest.approx(row["predicted"], rel=0.3)


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc"))), reason="network namespaces need root, ip and tc"
)
def test_agents_in_namespaces() -> None:
    words = line_of("netns")
    assert (ROOT / words[3]).samefile(MODEL_DIR)
    report = run(words)
    assert report
