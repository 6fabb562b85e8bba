"""cluster.toml: what it means, where it is looked for, and what is said when it is wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.config import (
    ClusterConfig,
    CoordinatorConfig,
    find_cluster_file,
    is_loopback,
    load_api_keys,
    load_config,
    parse_http,
    state_directory,
)

KEY_A = "A" * 40
KEY_B = "B" * 40
WHOLE = f"""
[coordinator]
bind = "tcp://0.0.0.0:5570"
key_file = "keys/coordinator.key"
http = "127.0.0.1:8088"
api_keys_file = "/etc/keys"
state_dir = "state"

[[devices]]
name = "agx-1"
key = "{KEY_A}"

[[devices]]
name = "agx-2"
key = "{KEY_B}"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "cluster.toml"
    path.write_text(text)
    return path


def test_every_key(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, WHOLE), {})
    assert config.coordinator == CoordinatorConfig(
        bind="tcp://0.0.0.0:5570",
        key_file=tmp_path / "keys/coordinator.key",
        http="127.0.0.1:8088",
        api_keys_file=Path("/etc/keys"),
        state_dir=tmp_path / "state",
    )
    assert config.device_names() == ("agx-1", "agx-2")
    assert config.devices[1].key == KEY_B


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    expected = ClusterConfig(coordinator=CoordinatorConfig(key_file=tmp_path / "coordinator.key"))
    assert load_config(write(tmp_path, ""), {}) == expected


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[coordinator]\nhttp = "127.0.0.1:1"\nbind = "tcp://127.0.0.1:1"\nstate_dir = "a"')
    env = {"EDGE_COORDINATOR__HTTP": "127.0.0.1:2", "EDGE_COORDINATOR__STATE_DIR": "b", "EDGE_AGENT__NAME": "x"}
    config = load_config(path, env, {"http": "127.0.0.1:3", "bind": None}).coordinator
    assert (config.http, config.bind, config.state_dir) == ("127.0.0.1:3", "tcp://127.0.0.1:1", Path("b"))


DEVICE = '[[devices]]\nname = "{}"\nkey = "{}"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coordinater = 1", r"cluster\.toml: unknown key coordinater; did you mean coordinator\?"),
        ('[coordinator]\nbnd = "x"', r"unknown key coordinator\.bnd; did you mean bind\?"),
        ("[coordinator]\nzzz = 1", "known keys: bind, key_file"),
        ("[coordinator]\nhttp = 8080", r"coordinator\.http: Expected `str`, got `int`"),
        ('[coordinator]\nhttp = "localhost"', r"coordinator\.http: 'localhost' is not host:port"),
        ('[coordinator]\nhttp = "h:99999"', r"coordinator\.http"),
        ('[coordinator]\nbind = "0.0.0.0:1"', r"coordinator\.bind: '0\.0\.0\.0:1' is not an endpoint"),
        ("[coordinator]\nkey_file = 3", r"coordinator\.key_file"),
        ("coordinator = 3", "expected a table"),
        ("devices = 3", r"expected an array of tables, \[\[devices\]\]"),
        ('[[devices]]\nname = "a"', "missing required field `key`"),
        (DEVICE.format("a", KEY_A) + DEVICE.format("a", KEY_B), "device a is listed twice"),
        (DEVICE.format("a", KEY_A) + DEVICE.format("b", KEY_A), "b has the key of a"),
        (DEVICE.format("a", "short"), r"devices\[0\]\.key: device a needs a public key of 40 z85 characters, got 5"),
        (DEVICE.format("a", "~" * 40), "z85"),
        (DEVICE.format("A B", KEY_A), r"devices\[0\]\.name: 'A B'"),
        ("= 3", r"cluster\.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text), {})


def test_a_wrong_environment_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"environment: unknown key edge_coordinator__bnd"):
        load_config(write(tmp_path, ""), {"EDGE_COORDINATOR__BND": "x"})
    with pytest.raises(ConfigError, match=r"environment: coordinator\.http"):
        load_config(write(tmp_path, ""), {"EDGE_COORDINATOR__HTTP": "x"})


def test_the_file_is_looked_for_here_then_in_the_configuration_directory(tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    env = {"HOME": str(home)}
    here.mkdir()
    with pytest.raises(ConfigError, match="edgectl init"):
        find_cluster_file(None, env, here)
    configured = home / ".config" / "edgectl"
    configured.mkdir(parents=True)
    write(configured, "")
    assert find_cluster_file(None, env, here) == configured / "cluster.toml"
    write(here, "")
    assert find_cluster_file(None, env, here) == here / "cluster.toml"
    assert find_cluster_file(configured / "cluster.toml", env, here) == configured / "cluster.toml"
    with pytest.raises(ConfigError, match="no such file"):
        find_cluster_file(tmp_path / "absent.toml", env, here)


@pytest.mark.parametrize(
    ("text", "host", "port", "url", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, "http://127.0.0.1:8080", True),
        ("[::1]:80", "::1", 80, "http://[::1]:80", True),
        ("0.0.0.0:1", "0.0.0.0", 1, "http://127.0.0.1:1", False),
        ("localhost:5", "localhost", 5, "http://localhost:5", True),
        ("edge.example:5", "edge.example", 5, "http://edge.example:5", False),
    ],
)
def test_http_addresses(text: str, host: str, port: int, url: str, loopback: bool) -> None:
    address = parse_http(text)
    assert (address.host, address.port, address.url) == (host, port, url)
    assert is_loopback(address.host) is loopback


def test_api_keys(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    path = tmp_path / "api.keys"
    path.write_text(f"# the team's\n\n{digest.upper()}  # laptop\n")
    assert load_api_keys(path) == {digest}
    path.write_text("sk-not-hashed\n")
    with pytest.raises(ConfigError, match=r"api\.keys:1: not a SHA-256") as refused:
        load_api_keys(path)
    assert "sk-not-hashed" not in str(refused.value)
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        load_api_keys(path)


def test_state_directory() -> None:
    given = CoordinatorConfig(state_dir=Path("/x"))
    assert state_directory(given, {"STATE_DIRECTORY": "/s"}) == Path("/x")
    assert state_directory(CoordinatorConfig(), {"STATE_DIRECTORY": "/s:/t"}) == Path("/s")
    assert state_directory(CoordinatorConfig(), {"XDG_STATE_HOME": "/h"}) == Path("/h/edgectl")
    assert state_directory(CoordinatorConfig(), {"HOME": "/me"}) == Path("/me/.local/state/edgectl")


@pytest.mark.parametrize(
    ("key", "value"), [("max_queued", "-1"), ("max_queued", "100001"), ("max_sessions_per_key", "-5")]
)
def test_limits_that_are_none_are_named_with_where_they_stand(tmp_path: Path, key: str, value: str) -> None:
    path = write(tmp_path, f"[coordinator]\n{key} = {value}")
    with pytest.raises(ConfigError, match=rf"cluster\.toml: coordinator\.{key}: {value} is outside 0 to 100000"):
        load_config(path, {})


def test_limits_come_from_the_environment_too_and_into_the_settings(tmp_path: Path) -> None:
    env = {"EDGE_COORDINATOR__MAX_QUEUED": "7", "EDGE_COORDINATOR__MAX_SESSIONS_PER_KEY": "2"}
    settings = load_config(write(tmp_path, WHOLE), env).settings()
    assert (settings.max_queued, settings.max_sessions_per_key) == (7, 2)
    with pytest.raises(ConfigError, match="max_queued"):
        load_config(write(tmp_path, WHOLE), {"EDGE_COORDINATOR__MAX_QUEUED": "seven"})
