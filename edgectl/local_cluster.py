"""A coordinator and agents on this machine as real processes, with CURVE keys made for the occasion.

The demo, `edgectl bench`, the benchmarks and the cluster tests start it; a person does the same with the commands of
the README.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.config import toml_text
from agent.wire.security import create_key_file
from edgectl.local_processes import Processes, ProcessFailed, free_ports, output_of

BIN = Path(sys.executable).parent
POLL_S = 0.05
HTTP_PATIENCE_S = 300.0


class LocalCluster:
    """Configuration and processes of one cluster below a directory; use inside `with Processes(...)`."""

    def __init__(self, directory: Path, processes: Processes) -> None:
        self.directory = directory
        self.processes = processes
        control_port, http_port = free_ports(2)
        self.endpoint = f"tcp://127.0.0.1:{control_port}"
        self.url = f"http://127.0.0.1:{http_port}"
        self.config = directory / "cluster.toml"
        init: list[str | Path] = [BIN / "edgectl", "init", "--dir", directory]
        init += ["--bind", self.endpoint, "--http", f"127.0.0.1:{http_port}"]
        self.coordinator_key: str = msgspec.toml.decode(output_of(init))["coordinator_key"]

    def add_device(self, name: str, models_dir: Path, settings: Mapping[str, str | int | bool]) -> None:
        """Make a device's key and agent.toml, and list it in cluster.toml, as `edge-agent init` has a person do it."""
        key = create_key_file(self.directory / f"{name}.key")
        values = {
            "name": name,
            "coordinator": self.endpoint,
            "coordinator_key": self.coordinator_key,
            "bind": "tcp://127.0.0.1:0",
            "models_dir": str(models_dir.absolute()),
            "key_file": f"{name}.key",
            "cache_dir": str(self.directory / "cache"),
            **settings,
        }
        (self.directory / f"{name}.toml").write_text(toml_text(values), encoding="utf-8")
        self.append(f"[[devices]]\n{toml_text({'name': name, 'key': key})}")

    def append(self, tables: str) -> None:
        """Further tables of cluster.toml, before the coordinator starts."""
        with self.config.open("a", encoding="utf-8") as file:
            file.write(f"\n{tables}")

    def start_coordinator(self, model: Path, options: Sequence[str] = ()) -> None:
        self.processes.start(
            "coordinator", [BIN / "edgectl", "serve", "--cluster", self.config, "--model", model, *options]
        )

    def start_device(self, name: str, prefix: Sequence[str | Path] = ()) -> None:
        """Start its agent; `prefix` is a command that runs it, like `ip netns exec NAME`."""
        run: list[str | Path] = [BIN / "edge-agent", "run", "--config", self.directory / f"{name}.toml"]
        self.processes.start(name, [*prefix, *run])

    def status(self) -> dict[str, Any]:
        """What `edgectl status --json` prints; empty while nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/edge/v1/status", timeout=5) as response:
                parsed: dict[str, Any] = json.load(response)
        except OSError:
            return {}
        return parsed

    def wait(
        self,
        until: Callable[[dict[str, Any]], bool],
        patience_s: float,
        progress: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Poll the status until it satisfies `until`. Raises ProcessFailed when a process ends or time runs out."""
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            self.processes.check()
            status = self.status()
            progress(status)
            if status.get("phase") == "refused":
                raise ProcessFailed(f"{status['detail']}\n\n{self.processes.logs()}")
            if status and until(status):
                return status
            time.sleep(POLL_S)
        raise ProcessFailed(f"not there after {patience_s:.0f} s\n\n{self.processes.logs()}")

    def wait_until_ready(self, patience_s: float) -> dict[str, Any]:
        return self.wait(lambda status: bool(status.get("ready")), patience_s)

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Choices of one streamed completion. Raises ProcessFailed when the answer breaks off."""
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps({**body, "stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=HTTP_PATIENCE_S) as response:
            for line in response:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    event = json.loads(line[len(b"data: ") :])
                    if "error" in event:
                        raise ProcessFailed(f"the answer broke off: {event['error']['message']}")
                    yield from event["choices"]
