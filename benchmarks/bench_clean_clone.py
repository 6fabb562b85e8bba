"""Seconds of `make demo` in a clean clone with an empty pip cache, and whether it installed torch.

python benchmarks/bench_clean_clone.py --out benchmarks/results/clean_clone.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environment = {**os.environ, "PIP_CACHE_DIR": str(Path(name) / "pip-cache")}
        environment.pop("VIRTUAL_ENV", None)
        started_s = time.monotonic()
        done = subprocess.run(
            ["make", "demo"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - started_s
        has_torch = any(clone.glob(".venv/lib/*/site-packages/torch"))
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    rows = [
        {"what": "make demo, seconds", "value": seconds, "target": "<= 180"},
        {"what": "exit status", "value": done.returncode, "target": "0"},
        {"what": "parity", "value": "identical" if "identical" in done.stdout else "different", "target": "identical"},
        {"what": "torch installed", "value": has_torch, "target": "False"},
    ]
    write_report("clean_clone", rows, {}, options.out)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
