"""A cluster of real processes on loopback: one coordinator, agents, CURVE keys made for the occasion.

Nothing here waits by sleeping: a process is awaited through a line it prints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.wire.security import create_key_file, load_key_file
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.sockets import free_port

EDGECTL = (sys.executable, "-c", "from edgectl.cli import main; main()")
EDGE_AGENT = (sys.executable, "-c", "import sys; from agent.main import main; sys.exit(main())")


class ProcessEnded(AssertionError):
    """A process ended, or closed its output, before it printed what was awaited."""


@dataclass(slots=True)
class Printing:
    """A process and everything it has printed on one stream so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def until(self, *words: str) -> str:
        """The next line with all of `words`; pytest's timeout bounds the wait."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if all(word in line for word in words):
                return line
        raise ProcessEnded(f"{self.process.args} ended without {words}:\n{''.join(self.lines)}")

    def rest(self) -> str:
        """Whatever it prints until it ends."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        return "".join(self.lines)

    def stop(self) -> int:
        """Ends it if it still runs; returns the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        # Read to its end before it is closed: a process that prints into a closed pipe dies of it.
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.rest()
            self.process.stdout.close()
        return self.process.wait(20)


class ClusterProcesses:
    """Starts what a test asks for, and ends all of it."""

    def __init__(self, directory: Path, devices: Sequence[str] = ("a", "b", "c")) -> None:
        self.directory = directory
        self.devices = tuple(devices)
        self.control_port, self.http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.cluster = directory / "cluster.toml"
        self.coordinator: Printing | None = None
        self.agents: dict[str, Printing] = {}
        self.coordinator_key = create_key_file(directory / "coordinator.key")
        blocks = [f'[[devices]]\nname = "{name}"\nkey = "{create_key_file(self.key_file(name))}"' for name in devices]
        head = (
            f'[coordinator]\nbind = "tcp://127.0.0.1:{self.control_port}"\nkey_file = "coordinator.key"\n'
            f'http = "127.0.0.1:{self.http_port}"\nstate_dir = "state"'
        )
        self.cluster.write_text("\n".join([head, *blocks]))

    def __enter__(self) -> ClusterProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for printing in (*self.agents.values(), *([self.coordinator] if self.coordinator else [])):
            printing.stop()

    def key_file(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def serve(self, *flags: str, model: Path = MODEL_DIR) -> Printing:
        """Starts the coordinator; its words and its `ready` events come on one stream."""
        command = [*EDGECTL, "serve", "--cluster", str(self.cluster), "--model", str(model), "--json", *flags]
        self.coordinator = self._start(command)
        return self.coordinator

    def ready(self) -> dict[str, Any]:
        """The coordinator's next `ready` event."""
        assert self.coordinator is not None
        event: dict[str, Any] = json.loads(self.coordinator.until('"event":"ready"'))
        return event

    def agent(
        self,
        name: str,
        *,
        models_dir: Path = MODEL_DIR.parent,
        memory_limit: str = "1 GiB",
        key_file: Path | None = None,
        settings: Mapping[str, str] | None = None,
        programs: Path | None = None,
    ) -> Printing:
        """Starts the agent of a device; `settings` go into its agent.toml, `programs` is searched before PATH."""
        values = {
            "name": name,
            "models_dir": str(models_dir),
            "cache_dir": str(self.directory / "cache"),
            "key_file": str(key_file or self.key_file(name)),
            "bind": "tcp://127.0.0.1:0",
            "coordinator": f"tcp://127.0.0.1:{self.control_port}",
            "coordinator_key": self.coordinator_key,
            "memory_limit": memory_limit,
            "log_format": "json",
            **(settings or {}),
        }
        path = self.directory / f"{name}.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path.write_text("\n".join([*lines, "threads = 1"]))
        env = dict(os.environ)
        if programs is not None:
            env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"
        self.agents[name] = self._start([*EDGE_AGENT, "run", "--config", str(path)], env)
        return self.agents[name]

    def start_all(self, *flags: str) -> dict[str, Any]:
        """A whole cluster; returns its `ready` event."""
        self.serve(*flags)
        for name in self.devices:
            self.agent(name)
        return self.ready()

    def public_key(self, name: str) -> str:
        return load_key_file(self.key_file(name)).public

    @staticmethod
    def _start(command: Sequence[str], env: Mapping[str, str] | None = None) -> Printing:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        return Printing(process)
