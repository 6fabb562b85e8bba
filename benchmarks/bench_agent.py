"""What an agent costs before it has a model: time to readiness, resident memory, modules in memory.

python benchmarks/bench_agent.py --out benchmarks/results/agent.json
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from report import write_report

from edgectl.local_cluster import BIN, LocalCluster
from edgectl.local_processes import Processes

ROUNDS = 7
FORBIDDEN = ("torch", "transformers", "fastapi", "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds = [measure() for _ in range(ROUNDS)]
    ready_s = statistics.median(ready for ready, _, _ in rounds)
    resident_mib = statistics.median(resident for _, resident, _ in rounds)
    mapped = sorted({module for _, _, modules in rounds for module in modules})
    rows = [
        {"what": "start to READY=1, seconds", "median": ready_s, "target": "<= 1"},
        {"what": "resident, both processes, MiB", "median": resident_mib, "target": "<= 110"},
        {"what": "torch, transformers, fastapi, onnxruntime", "median": ", ".join(mapped) or "none", "target": "none"},
    ]
    write_report("agent", rows, {"rounds": ROUNDS}, options.out)


def measure() -> tuple[float, float, set[str]]:
    """Seconds to READY=1 as systemd would see it, MiB of both processes, forbidden libraries they have mapped."""
    with tempfile.TemporaryDirectory() as name, Processes(Path(name)) as processes:
        directory = Path(name)
        cluster = LocalCluster(directory, processes)
        cluster.add_device("device", directory, {})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(directory / "notify"))
            systemd.settimeout(30)
            started_s = time.monotonic()
            command = [BIN / "edge-agent", "run", "--config", directory / "device.toml"]
            process = psutil.Popen([*map(str, command)], env={"NOTIFY_SOCKET": str(directory / "notify")})
            while b"READY=1" not in systemd.recv(4096):
                pass
            ready_s = time.monotonic() - started_s
            family = [process, *process.children(recursive=True)]
            resident = sum(member.memory_info().rss for member in family) / 2**20
            paths = {region.path for member in family for region in member.memory_maps()}
            process.terminate()
            process.wait(10)
    return ready_s, resident, {module for module in FORBIDDEN if any(f"/{module}/" in path for path in paths)}


if __name__ == "__main__":
    main()
