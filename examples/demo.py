"""One model across three agents on this machine, and the same tokens in one process. Run by `make demo`.

Everything is real: processes, sockets with CURVE keys made for the occasion, the HTTP API. It ends by itself; with
--keep it goes on serving until Ctrl-C.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgectl.local_cluster import BIN, LocalCluster
from edgectl.local_processes import Processes, ProcessFailed, output_of

MODEL = Path(__file__).resolve().parent / "models" / "wiki-32l"
PROMPT = "The history of the river begins"
MAX_TOKENS = 120
SEED = 7
TEMPERATURE = 0.8
DEVICES = {"alpha": "600 MiB", "beta": "400 MiB", "gamma": "200 MiB"}
"""Three devices of different size on one machine: the split follows their memory limits."""

READY_PATIENCE_S = 90.0
TELEMETRY_PATIENCE_S = 5.0
REPORT_AGE_S = 0.6
"""A heartbeat comes every second and tells what the worker reported in the last half second."""

console = Console(highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep serving after the demo")
    keep = parser.parse_args().keep
    directory = Path(tempfile.mkdtemp(prefix="edgectl-demo-"))
    os.environ["EDGE_COORDINATOR__STATE_DIR"] = str(directory / "state")
    processes = Processes(directory)
    try:
        with processes:
            return run(LocalCluster(directory, processes), keep)
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    except (ProcessFailed, OSError, http.client.HTTPException) as problem:
        console.print("\n[red]failed[/red]", str(problem), markup=True, soft_wrap=True)
        if not isinstance(problem, ProcessFailed):
            console.print(processes.logs(), markup=False, soft_wrap=True)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(cluster: LocalCluster, keep: bool) -> int:
    """The demo from keys to parity; returns the exit status."""
    start(cluster)
    show_devices(cluster.status())
    ids = show_answer(cluster)
    cluster.processes.check()
    show_stages(measured(cluster))
    identical = ids == local_answer()
    console.print(f"\nparity: {'[green]identical[/green]' if identical else '[red]different[/red]'}")
    if keep and identical:
        keep_serving(cluster)
    return 0 if identical else 1


def start(cluster: LocalCluster) -> None:
    """Keys and configuration as a person would make them, then the processes, until the model is loaded."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("making keys", total=2 * len(DEVICES) + 1)
        for name, memory_limit in DEVICES.items():
            cluster.add_device(name, MODEL.parent, {"memory_limit": memory_limit})
            progress.advance(bar)
        cluster.start_coordinator(MODEL)
        for name in DEVICES:
            cluster.start_device(name)
        cluster.wait(lambda status: bool(status.get("ready")), READY_PATIENCE_S, follow(progress, bar))


def follow(progress: Progress, bar: Any) -> Callable[[dict[str, Any]], None]:
    """Turns the status into the bar's text and length."""

    def update(status: dict[str, Any]) -> None:
        connected = sum(device["provider"] is not None for device in status.get("devices", ()))
        doing = status.get("detail") or "starting the coordinator"
        progress.update(bar, completed=len(DEVICES) + connected, description=doing)

    return update


def show_devices(status: dict[str, Any]) -> None:
    table = Table("device", "layers", "memory", "provider", title=status["model"], title_justify="left", box=None)
    for device in status["devices"]:
        layers = ", ".join(f"[{start}, {stop})" for start, stop in device["layers"])
        table.add_row(device["name"], layers, f"{device['memory_bytes'] / 2**20:.0f} MiB", device["provider"])
    console.print(table)


def show_answer(cluster: LocalCluster) -> list[int]:
    """Stream a completion, printing text as it comes; returns the token ids."""
    body = {
        "model": MODEL.name,
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        "temperature": TEMPERATURE,
        "seed": SEED,
        # Two extensions, so that tokens are compared and not text, and always as many.
        "return_token_ids": True,
        "ignore_eos": True,
    }
    console.print(f"\n[bold]{PROMPT}[/bold]", end="")
    ids: list[int] = []
    for choice in cluster.stream(body):
        console.print(choice["text"], end="", markup=False, soft_wrap=True)
        ids += choice["token_ids"]
    console.print("\n")
    return ids


def measured(cluster: LocalCluster) -> dict[str, Any]:
    """What `edgectl status --json` says once every device has sent a heartbeat made after the answer's end."""
    ended_s = time.monotonic()
    command: list[str | Path] = [BIN / "edgectl", "status", "--cluster", cluster.config, "--json"]
    with console.status("waiting for the devices' next heartbeats"):
        while True:
            status: dict[str, Any] = json.loads(output_of(command))
            since_s = time.monotonic() - ended_s
            heard_s = max(device["heard_s"] or 0.0 for device in status["devices"])
            if heard_s < since_s - REPORT_AGE_S or since_s > TELEMETRY_PATIENCE_S:
                return status


def show_stages(status: dict[str, Any]) -> None:
    table = Table(box=None)
    for heading in ("stage", "layers", "compute ms", "wire ms", "wait ms", "bytes/token", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in status["stages"]:
        start, stop = stage["layers"]
        times = (number(stage[key], 2) for key in ("compute_ms", "wire_ms", "wait_ms"))
        rates = (number(stage["bytes_per_frame"], 0), number(status["tokens_per_s"], 1))
        table.add_row(stage["device"], f"[{start}, {stop})", *times, *rates)
    console.print(table)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def local_answer() -> list[int]:
    """Token ids of the same prompt and seed in one process, without any agent."""
    command: list[str | Path] = [BIN / "edgectl", "generate", "--local", "--model", MODEL]
    command += ["--max-tokens", str(MAX_TOKENS), "--temperature", str(TEMPERATURE), "--seed", str(SEED)]
    command += ["--ignore-eos", "--json", PROMPT]
    with console.status("the same prompt and seed in one process"):
        ids: list[int] = json.loads(output_of(command))["ids"]
    return ids


def keep_serving(cluster: LocalCluster) -> None:
    body = json.dumps({"model": MODEL.name, "prompt": PROMPT, "max_tokens": 40, "stream": True})
    url = f"{cluster.url}/v1/completions"
    console.print("\nserving until Ctrl-C; try\n")
    console.print(f"curl -N {url} -H 'Content-Type: application/json' -d '{body}'", soft_wrap=True, markup=False)
    cluster.processes.wait_any()
    cluster.processes.check()


if __name__ == "__main__":
    sys.exit(main())
