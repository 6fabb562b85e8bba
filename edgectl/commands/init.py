"""`edgectl init` and `edgectl device add`: the coordinator's key and cluster.toml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agent.errors import ConfigError
from edgectl.config import FILE_NAME, CoordinatorConfig, check_endpoint, find_cluster_file, load_config, parse_http
from edgectl.output import emit, say

TEMPLATE = """\
# The cluster: its coordinator and its devices. Paths are relative to this file.
# Environment variables EDGE_COORDINATOR__<KEY> and flags of `edgectl serve` override [coordinator].

[coordinator]
# Control endpoint the agents connect to; tcp://0.0.0.0:5570 accepts them from other machines.
bind = "{bind}"
# Secret CURVE key of the coordinator, made by `edgectl init`.
key_file = "coordinator.key"
# Where the OpenAI-compatible API listens. Other addresses than loopback need api_keys_file.
http = "{http}"
# One SHA-256 of an API key per line: printf %s KEY | sha256sum
# api_keys_file = "api.keys"
# Where the start counter is kept. Default: $STATE_DIRECTORY, else $XDG_STATE_HOME/edgectl.
# state_dir = "state"

# One block per device; `edge-agent init` on the device prints it, `edgectl device add NAME KEY` appends it.
# The first device is the source: it has layer 0 and the tokens of every prompt.
# [[devices]]
# name = "agx-1"
# key = "the 40 characters that edge-agent init printed"
"""


def init(
    directory: Annotated[Path, typer.Option("--dir", help="Where cluster.toml and the key are written.")] = Path(),
    bind: Annotated[str, typer.Option(help="Control endpoint the agents connect to.")] = CoordinatorConfig().bind,
    http: Annotated[str, typer.Option(help="host:port of the HTTP API.")] = CoordinatorConfig().http,
) -> None:
    """Make the coordinator's key and a commented cluster.toml; print the two lines for every agent.toml."""
    from agent.wire.security import create_key_file, fingerprint

    path = directory / FILE_NAME
    if path.exists():
        raise ConfigError(f"{path} exists already; remove it or choose another directory with --dir")
    try:
        parse_http(http)
        check_endpoint(bind)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    public = create_key_file(directory / "coordinator.key")
    path.write_text(TEMPLATE.format(bind=bind, http=http), encoding="utf-8")
    load_config(path, {})
    emit(f'coordinator = "{_reachable(bind)}"\ncoordinator_key = "{public}"')
    say(f"\nwrote {path} and {directory / 'coordinator.key'} (key fingerprint {fingerprint(public)})")
    say("put the two lines above into agent.toml of every device, or run there:")
    say(f"  edge-agent init --coordinator {_reachable(bind)} --coordinator-key '{public}'")


def add_device(
    name: Annotated[str, typer.Argument(help="Name of the device, as in its agent.toml.")],
    key: Annotated[str, typer.Argument(help="Public key that `edge-agent init` printed there.")],
    cluster: Annotated[Path | None, typer.Option(help="The cluster.toml to change.")] = None,
) -> None:
    """Append a device to cluster.toml after checking its name and key."""
    from agent.wire.security import check_public_key, fingerprint

    path = find_cluster_file(cluster, os.environ)
    check_public_key(key)
    before = path.read_text(encoding="utf-8")
    separator = "" if before.endswith("\n\n") or not before else "\n" if before.endswith("\n") else "\n\n"
    candidate = path.with_suffix(".toml.new")
    candidate.write_text(f'{before}{separator}[[devices]]\nname = "{name}"\nkey = "{key}"\n', encoding="utf-8")
    try:
        devices = load_config(candidate, {}).devices
    except ConfigError as problem:
        candidate.unlink()
        raise ConfigError(str(problem).replace(str(candidate), str(path))) from problem
    candidate.replace(path)
    say(f"added {name} (key fingerprint {fingerprint(key)}) to {path}, now {len(devices)} devices")


def _reachable(bind: str) -> str:
    """The endpoint as a device may connect to it: a wildcard becomes a name that the person is to replace."""
    for wildcard in ("//0.0.0.0:", "//*:", "//[::]:"):
        bind = bind.replace(wildcard, "//THIS-MACHINE:")
    return bind
