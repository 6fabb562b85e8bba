"""Controllers of the split against each other on live sessions: `edgectl bench adaptive` on two traces of the radio.

    python benchmarks/bench_adaptive.py --out benchmarks/results/adaptive.json

One trace is faint and quick, the other noisy, with a shape that stays for a while and then is another one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from report import ROOT

POLICIES = Path("examples/policies")
BUNDLED = (
    *("--model", "examples/models/wiki-32l", "--quality", f"{POLICIES}/wiki-32l.quality.json"),
    *("--policy", f"{POLICIES}/wiki-32l.onnx", "--tokens", "480"),
)
TRACES = {
    "quick and faint": ("--text-tokens", "2000", "--sigma", "0.5"),
    "slow and noisy": ("--text-tokens", "3000", "--sigma", "1", "--step", "1", "--hold", "48", "--seed", "3"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--traces", nargs="+", choices=list(TRACES), default=list(TRACES))
    options = parser.parse_args()
    edgectl = Path(sysconfig.get_path("scripts")) / "edgectl"
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for trace in options.traces:
            print(f"{trace}:", flush=True)
            found = Path(folder) / "found.json"
            command = [edgectl, "bench", "adaptive", *BUNDLED, *TRACES[trace], "--out", found]
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode:
                sys.exit(done.returncode)
            runs.append(json.loads(found.read_text(encoding="utf-8")))
    if options.out is not None:
        report = {"benchmark": "edgectl bench adaptive", "runs": runs}
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
