"""`edgectl init` makes a cluster.toml that decodes and a key that nobody else can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from agent.wire.security import generate_keys, load_key_file
from edgectl.config import load_config
from edgectl.failures import ExitCode
from tests.fakes.command_line import edgectl


def test_init_prints_the_two_lines_for_the_agents(tmp_path: Path) -> None:
    result = edgectl("init", "--dir", str(tmp_path), "--bind", "tcp://0.0.0.0:7000", "--http", "127.0.0.1:7001")
    assert result.exit_code == ExitCode.OK
    lines = msgspec.toml.decode(result.stdout)
    assert lines == {
        "coordinator": "tcp://THIS-MACHINE:7000",
        "coordinator_key": load_key_file(tmp_path / "coordinator.key").public,
    }
    assert stat.S_IMODE(os.stat(tmp_path / "coordinator.key").st_mode) == 0o600
    config = load_config(tmp_path / "cluster.toml", {}).coordinator
    assert (config.bind, config.http, config.key_file) == (
        "tcp://0.0.0.0:7000",
        "127.0.0.1:7001",
        tmp_path / "coordinator.key",
    )
    assert "edge-agent init --coordinator" in result.stderr


def test_an_existing_cluster_is_not_touched(tmp_path: Path) -> None:
    edgectl("init", "--dir", str(tmp_path))
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    again = edgectl("init", "--dir", str(tmp_path))
    assert again.exit_code == ExitCode.CONFIG
    assert again.stdout == ""
    assert "cluster.toml exists already" in again.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_wrong_address_leaves_nothing_behind(tmp_path: Path) -> None:
    assert edgectl("init", "--dir", str(tmp_path), "--http", "8080").exit_code == ExitCode.USAGE
    assert edgectl("init", "--dir", str(tmp_path), "--bind", "127.0.0.1:1").exit_code == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


def test_devices_are_appended_after_a_check(tmp_path: Path) -> None:
    edgectl("init", "--dir", str(tmp_path))
    cluster = tmp_path / "cluster.toml"
    one, two = generate_keys().public, generate_keys().public
    assert edgectl("device", "add", "agx-1", one, "--cluster", str(cluster)).exit_code == 0
    added = edgectl("device", "add", "agx-2", two, "--cluster", str(cluster))
    assert "now 2 devices" in added.stderr
    assert [(device.name, device.key) for device in load_config(cluster, {}).devices] == [
        ("agx-1", one),
        ("agx-2", two),
    ]
    before = cluster.read_text()
    for name, key, message in (
        ("agx-1", generate_keys().public, "listed twice"),
        ("agx-3", one, "has the key of agx-1"),
        ("agx-3", "short", "Z85"),
        ("A B", generate_keys().public, "lower-case"),
    ):
        refused = edgectl("device", "add", name, key, "--cluster", str(cluster))
        assert refused.exit_code == ExitCode.CONFIG
        assert message in refused.stderr
        assert ".new" not in refused.stderr
    assert cluster.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.toml", "coordinator.key"]
