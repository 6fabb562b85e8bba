"""AgentConfig: precedence, errors that name place, key and way out, sizes, advertised endpoints."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import AgentConfig, advertised_endpoint, load_config, parse_size, split_endpoint, toml_text
from agent.errors import ConfigError

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
NEEDED = {"coordinator": "tcp://127.0.0.1:5570", "coordinator_key": KEY}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    path = write(tmp_path, toml_text({**NEEDED, "threads": 1, "memory_limit": "1 GiB", "name": "from-file"}))
    env = {"EDGE_AGENT__THREADS": "2", "EDGE_AGENT__NAME": "from-env", "PATH": "/bin"}
    config = load_config(path, env, {"name": "from-flag", "threads": None})
    assert (config.name, config.threads, config.memory_limit) == ("from-flag", 2, "1 GiB")
    assert config.memory_limit_bytes == 1 << 30


def test_without_a_file_environment_and_flags_suffice() -> None:
    config = load_config(None, {"EDGE_AGENT__COORDINATOR_KEY": KEY}, {"coordinator": "tcp://10.0.0.1:5570"})
    assert config.coordinator_key == KEY
    assert config.name
    assert config.name == config.name.lower()


def test_environment_strings_become_the_fields_type() -> None:
    env = {f"EDGE_AGENT__{key.upper()}": value for key, value in NEEDED.items()}
    config = load_config(None, {**env, "EDGE_AGENT__SPINNING": "true", "EDGE_AGENT__SPIN_DURATION_US": "200"})
    assert config.spinning is True
    assert config.spin_duration_us == 200


def test_paths_of_the_file_are_relative_to_it(tmp_path: Path) -> None:
    path = write(tmp_path, toml_text({**NEEDED, "models_dir": "weights", "cache_dir": "/var/cache/edge-agent"}))
    config = load_config(path, {}, {"key_file": "here.key"})
    assert config.models_dir == tmp_path / "weights"
    assert config.cache_dir == Path("/var/cache/edge-agent")
    assert config.key_file == Path("here.key")
    assert load_config(path, {}).key_file == tmp_path / "agent.key"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(None, {}, {**NEEDED, "models_dir": "~/models"}).models_dir == tmp_path / "models"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thread = 2\n", ["agent.toml", "unknown key thread;", "did you mean threads?"]),
        ("colour = 'red'\n", ["unknown key colour", "known keys: name, models_dir"]),
        ("threads = 'two'\n", ["agent.toml", "threads", "Expected `int`"]),
        ("threads = -1\n", ["threads is -1", "0 means"]),
        ("provider = 'rocm'\n", ["provider", "rocm"]),
        ("memory_limit = '6 GB of RAM'\n", ["memory_limit", "6 GiB"]),
        ("bind = '0.0.0.0:5571'\n", ["bind", "tcp://host:port"]),
        ("coordinator = 'tcp://h:70000'\n", ["coordinator", "65535"]),
        ("coordinator = ''\n", ["coordinator is missing", "edgectl serve"]),
        ("coordinator_key = 'short'\n", ["coordinator_key", "40 characters", "edgectl init"]),
        ("name = 'Großer Kasten'\n", ["name is", "lower-case"]),
        ("advertise = 'tcp://box'\n", ["advertise", "without scheme"]),
        ("models_dir = 3\n", ["models_dir", "path"]),
        ("threads = \n", ["agent.toml", "not TOML", "line"]),
    ],
)
def test_errors_name_file_key_and_way_out(tmp_path: Path, text: str, expected: list[str]) -> None:
    given_keys = {line.split(" =")[0] for line in text.splitlines()}
    rest = {key: value for key, value in NEEDED.items() if key not in given_keys}
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text + toml_text(rest)), {})
    assert all(part in str(caught.value) for part in ["agent.toml", *expected]), str(caught.value)


def test_unreadable_files_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: No such file"):
        load_config(tmp_path / "missing.toml", {})
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 8"):
        load_config(tmp_path / "latin.toml", {})


def test_environment_errors_name_the_variable() -> None:
    with pytest.raises(ConfigError, match="environment: unknown key EDGE_AGENT__TREADS; did you mean threads"):
        load_config(None, {"EDGE_AGENT__TREADS": "2"}, NEEDED)
    with pytest.raises(ConfigError, match="environment: threads"):
        load_config(None, {"EDGE_AGENT__THREADS": "two"}, NEEDED)


@given(st.integers(0, 1 << 50))
def test_any_number_of_bytes_is_a_size(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == parse_size(f" {size_bytes} B ") == size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("6 GiB", 6 << 30), ("6GB", 6 * 10**9), ("1.5 MiB", 3 << 19), ("512k", 512_000), ("2 tib", 2 << 40)],
)
def test_units(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@given(st.text(max_size=12))
def test_a_size_parses_or_raises_value_error(text: str) -> None:
    try:
        size_bytes = parse_size(text)
    except ValueError:
        return
    assert size_bytes >= 0


@given(st.text(max_size=20))
def test_an_endpoint_parses_or_raises_value_error(text: str) -> None:
    try:
        host, port = split_endpoint("tcp://" + text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text() | st.integers(-(2**62), 2**62) | st.booleans()
    )
)
def test_toml_text_round_trips(values: dict[str, str | int | bool]) -> None:
    assert msgspec.toml.decode(toml_text(values)) == values


@pytest.mark.parametrize(
    ("bound", "advertise", "expected"),
    [
        ("tcp://127.0.0.1:5571", "", "tcp://127.0.0.1:5571"),
        ("tcp://127.0.0.1:5571", "nano.lan", "tcp://nano.lan:5571"),
        ("tcp://0.0.0.0:40001", "", "tcp://127.0.0.1:40001"),
        ("tcp://[::1]:40001", "", "tcp://[::1]:40001"),
        ("tcp://[::ffff:127.0.0.1]:40001", "", "tcp://127.0.0.1:40001"),
        ("tcp://[::]:40001", "", "tcp://127.0.0.1:40001"),
        ("tcp://0.0.0.0:40001", "fe80::1", "tcp://[fe80::1]:40001"),
    ],
)
def test_advertised_endpoint(bound: str, advertise: str, expected: str) -> None:
    config = AgentConfig(coordinator="tcp://127.0.0.1:5570", advertise=advertise)
    assert advertised_endpoint(config, bound) == expected


def test_no_route_to_the_coordinator_says_what_to_set() -> None:
    config = AgentConfig(coordinator="tcp://nowhere.invalid:5570")
    with pytest.raises(ConfigError, match="set advertise"):
        advertised_endpoint(config, "tcp://0.0.0.0:1")
