"""The console script `edge-agent`: make this device's key, or run the daemon."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

from agent.config import load_config, toml_text
from agent.errors import AgentError
from agent.log import configure
from agent.wire.security import create_key_file, fingerprint

EXIT_FAILURE = 1
DEFAULT_CONFIG = Path("agent.toml")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except AgentError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_FAILURE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-agent", description="The edgectl daemon of one device.")
    parser.add_argument("--version", action="version", version=f"edge-agent {version('edgectl')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make this device's key and agent.toml, print its lines for cluster.toml")
    init.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="file to write (default: %(default)s)")
    init.add_argument("--name", help="name of this device (default: its host name)")
    init.add_argument("--coordinator", required=True, help="control endpoint, like tcp://192.168.1.10:5570")
    init.add_argument("--coordinator-key", required=True, help="public key that `edgectl init` printed")
    init.add_argument("--bind", help="data endpoint, like tcp://*:5571 (default: loopback only)")
    init.add_argument("--models-dir", help="directory of model directories")
    init.set_defaults(run=_init)

    run = commands.add_parser("run", help="serve the layers the coordinator assigns")
    run.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="configuration file (default: %(default)s)")
    run.set_defaults(run=_run)
    return parser


def _init(options: argparse.Namespace) -> int:
    path: Path = options.config
    if path.exists():
        print(f"error: {path} exists already; remove it or choose another with --config", file=sys.stderr)
        return EXIT_FAILURE
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "name": options.name,
        "coordinator": options.coordinator,
        "coordinator_key": options.coordinator_key,
        "bind": options.bind,
        "models_dir": options.models_dir and str(Path(options.models_dir).absolute()),
        "key_file": f"{path.stem}.key",
    }
    path.write_text(toml_text({key: value for key, value in settings.items() if value}), encoding="utf-8")
    try:
        config = load_config(path, os.environ)
        public = create_key_file(config.key_file)
    except AgentError:
        path.unlink()
        raise
    print(f'[[devices]]\nname = "{config.name}"\nkey = "{public}"')
    print(f"\nkey fingerprint {fingerprint(public)}; add the lines above to cluster.toml", file=sys.stderr)
    return 0


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config, os.environ)
    configure(config.log_level, config.log_format, device=config.name, process="supervisor")
    # Imported here: `edge-agent --help` and `init` need neither sockets nor a worker.
    from agent.supervisor import Supervisor

    return Supervisor(config).run()


if __name__ == "__main__":
    sys.exit(main())
