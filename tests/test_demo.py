"""The demo as `make demo` runs it: real processes, a streamed answer, equal tokens in one process, nothing left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo.py"

pytestmark = pytest.mark.cluster


def left_behind(directory: Path) -> list[str]:
    """Command lines of processes that still speak of the demo's directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(directory) in line:
            found.append(line)
    return found


def start(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    env = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "160"}
    return subprocess.Popen(
        [sys.executable, str(DEMO), *flags], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_the_demo_shows_devices_an_answer_its_stages_and_parity(tmp_path: Path) -> None:
    process = start(tmp_path)
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    assert "parity: identical" in output
    for device in ("alpha", "beta", "gamma"):
        assert re.search(rf"^ *{device} +\[\d+, \d+\) +\d+ MiB +cpu", output, re.MULTILINE), output
        assert re.search(rf"^ *{device} +\[\d+, \d+\)(?: +\d+(\.\d+)?){{5}} *$", output, re.MULTILINE), output
    layers = [(int(a), int(b)) for a, b in re.findall(r"\[(\d+), (\d+)\)", output)][:3]
    assert [start for start, _ in layers] == [0, layers[0][1], layers[1][1]]
    assert layers[-1][1] == 32
    assert left_behind(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_serving_leaves_nothing_behind(tmp_path: Path) -> None:
    process = start(tmp_path, "--keep")
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith("curl "):
            break
    assert process.poll() is None, seen
    assert "/v1/completions" in seen.splitlines()[-1]
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, seen + output
    assert left_behind(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
