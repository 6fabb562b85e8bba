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
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from processes import Processes, ProcessFailed, free_ports, output_of
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.config import toml_text

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
POLL_S = 0.1

console = Console(highlight=False)
BIN = Path(sys.executable).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep serving after the demo")
    keep = parser.parse_args().keep
    directory = Path(tempfile.mkdtemp(prefix="edgectl-demo-"))
    os.environ["EDGE_COORDINATOR__STATE_DIR"] = str(directory / "state")
    processes = Processes(directory)
    try:
        with processes:
            return run(directory, processes, keep)
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    except (ProcessFailed, OSError, http.client.HTTPException) as problem:
        console.print(f"\n[red]failed:[/red] {problem}", markup=True)
        if not isinstance(problem, ProcessFailed):
            console.print(processes.logs(), markup=False)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(directory: Path, processes: Processes, keep: bool) -> int:
    """The demo from keys to parity; returns the exit status."""
    control_port, http_port = free_ports(2)
    cluster = directory / "cluster.toml"
    url = f"http://127.0.0.1:{http_port}"
    make_cluster(directory, cluster, control_port, http_port)
    processes.start("coordinator", [BIN / "edgectl", "serve", "--cluster", cluster, "--model", MODEL])
    for name in DEVICES:
        processes.start(name, [BIN / "edge-agent", "run", "--config", directory / f"{name}.toml"])
    wait_until_ready(url, processes)
    show_devices(status_of(cluster))
    answer = show_answer(url)
    processes.check()
    show_stages(measured(cluster))
    identical = answer == local_answer()
    console.print(f"\nparity: {'[green]identical[/green]' if identical else '[red]different[/red]'}")
    if keep and identical:
        keep_serving(url, processes)
    return 0 if identical else 1


def make_cluster(directory: Path, cluster: Path, control_port: int, http_port: int) -> None:
    """Keys and configuration, as a person would make them; each device's lines go into cluster.toml."""
    endpoint = f"tcp://127.0.0.1:{control_port}"
    init = [BIN / "edgectl", "init", "--dir", directory, "--bind", endpoint, "--http", f"127.0.0.1:{http_port}"]
    key = msgspec.toml.decode(output_of(init))["coordinator_key"]
    for name, memory_limit in DEVICES.items():
        config = directory / f"{name}.toml"
        lines = output_of(
            [
                *(BIN / "edge-agent", "init", "--config", config, "--name", name),
                *("--coordinator", endpoint, "--coordinator-key", key),
                *("--bind", "tcp://127.0.0.1:0", "--models-dir", MODEL.parent),
            ]
        )
        with cluster.open("a", encoding="utf-8") as file:
            file.write(f"\n{lines}")
        with config.open("a", encoding="utf-8") as file:
            file.write(toml_text({"memory_limit": memory_limit, "cache_dir": str(directory / "cache")}))


def wait_until_ready(url: str, processes: Processes) -> None:
    """Poll the status until every device has its layers. Raises ProcessFailed when one ends or cannot take them."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    deadline_s = time.monotonic() + READY_PATIENCE_S
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("starting the coordinator", total=len(DEVICES) + 1)
        while time.monotonic() < deadline_s:
            processes.check()
            status = status_over_http(url)
            if status.get("ready"):
                return
            if status.get("phase") == "refused":
                raise ProcessFailed(f"{status['detail']}\n\n{processes.logs()}")
            connected = sum(device["provider"] is not None for device in status.get("devices", ()))
            progress.update(bar, completed=connected, description=status.get("detail") or "starting the coordinator")
            time.sleep(POLL_S)
    raise ProcessFailed(f"not ready after {READY_PATIENCE_S:.0f} s\n\n{processes.logs()}")


def status_over_http(url: str) -> dict[str, Any]:
    """What `edgectl status --json` prints; empty while nobody answers."""
    try:
        with urllib.request.urlopen(f"{url}/edge/v1/status", timeout=5) as response:
            parsed: dict[str, Any] = json.load(response)
    except OSError:
        return {}
    return parsed


def status_of(cluster: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(output_of([BIN / "edgectl", "status", "--cluster", cluster, "--json"]))
    return parsed


def measured(cluster: Path) -> dict[str, Any]:
    """The status with the whole answer in it: once every device has sent a heartbeat made after its end."""
    ended_s = time.monotonic()
    with console.status("waiting for the devices' next heartbeats"):
        while True:
            status = status_of(cluster)
            since_s = time.monotonic() - ended_s
            heard_s = [device["heard_s"] or 0.0 for device in status["devices"]]
            if max(heard_s) < since_s - REPORT_AGE_S or since_s > TELEMETRY_PATIENCE_S:
                return status
            time.sleep(POLL_S)


def show_devices(status: dict[str, Any]) -> None:
    table = Table("device", "layers", "memory", "provider", title=status["model"], title_justify="left", box=None)
    for device in status["devices"]:
        layers = ", ".join(f"[{start}, {stop})" for start, stop in device["layers"])
        table.add_row(device["name"], layers, f"{device['memory_bytes'] / 2**20:.0f} MiB", device["provider"])
    console.print(table)


def show_answer(url: str) -> list[int]:
    """Stream a completion, printing text as it comes; returns the token ids."""
    console.print(f"\n[bold]{PROMPT}[/bold]", end="")
    ids: list[int] = []
    for choice in stream(url):
        console.print(choice["text"], end="", markup=False, soft_wrap=True)
        ids += choice["token_ids"]
    console.print("\n")
    return ids


def stream(url: str) -> Iterator[dict[str, Any]]:
    """Choices of one streamed completion, as server-sent events bring them."""
    body = {
        "model": MODEL.name,
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        "temperature": TEMPERATURE,
        "seed": SEED,
        "stream": True,
        # Two extensions, so that tokens are compared and not text, and always as many.
        "return_token_ids": True,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                event = json.loads(line[len(b"data: ") :])
                if "error" in event:
                    raise ProcessFailed(f"the answer broke off: {event['error']['message']}")
                yield from event["choices"]


def show_stages(status: dict[str, Any]) -> None:
    table = Table(box=None)
    for heading in ("stage", "layers", "compute ms", "wire ms", "wait ms", "bytes/token", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in status["stages"]:
        start, stop = stage["layers"]
        times = (number(stage[key], 2) for key in ("compute_ms", "wire_ms", "wait_ms"))
        rates = (number(stage["bytes_per_token"], 0), number(status["tokens_per_s"], 1))
        table.add_row(stage["device"], f"[{start}, {stop})", *times, *rates)
    console.print(table)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def local_answer() -> list[int]:
    """Token ids of the same prompt and seed in one process, without any agent."""
    command = [BIN / "edgectl", "generate", "--local", "--model", MODEL, "--max-tokens", str(MAX_TOKENS)]
    command += ["--temperature", str(TEMPERATURE), "--seed", str(SEED), "--ignore-eos", "--json", PROMPT]
    with console.status("the same prompt and seed in one process"):
        ids: list[int] = json.loads(output_of(command))["ids"]
    return ids


def keep_serving(url: str, processes: Processes) -> None:
    body = json.dumps({"model": MODEL.name, "prompt": PROMPT, "max_tokens": 40, "stream": True})
    console.print("\nserving until Ctrl-C; try\n")
    console.print(f"curl -N {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'", soft_wrap=True)
    processes.wait_any()
    processes.check()


if __name__ == "__main__":
    sys.exit(main())
