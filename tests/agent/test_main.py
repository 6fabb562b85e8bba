"""The console script: keys and configurations made once, and errors that say what to do."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from agent.config import load_config
from agent.main import main
from agent.wire.security import fingerprint, generate_keys, load_key_file
from tests.fakes.agent_process import EDGE_AGENT

COORDINATOR = "tcp://192.0.2.1:5570"


def init(path: Path, *more: str) -> list[str]:
    return ["init", "--config", str(path), "--coordinator", COORDINATOR, "--coordinator-key", KEY, *more]


KEY = generate_keys().public


def test_the_installed_script_says_its_version() -> None:
    done = subprocess.run([EDGE_AGENT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"edge-agent {version('edgectl')}\n"


def test_help_and_init_need_no_sockets_and_no_arrays() -> None:
    """zmq makes the key; NumPy and the supervisor are for a daemon that runs."""
    code = "import sys, agent.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "agent.supervisor", "agent.worker", "onnxruntime"} & set(done.stdout.split())


@pytest.mark.parametrize("arguments", [[], ["walk"], ["init"], ["run", "--speed", "9"]])
def test_a_wrong_command_line_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: edge-agent" in capsys.readouterr().err


# --- init ---


def test_init_makes_a_key_and_a_configuration_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "etc" / "d1.toml"
    more = ("--name", "d1", "--bind", "tcp://*:5571", "--models-dir", str(tmp_path / "models"))
    assert main(init(path, *more)) == 0
    config = load_config(path, {})
    keys = load_key_file(config.key_file)
    assert (config.name, config.coordinator, config.coordinator_key, config.bind) == (
        "d1",
        COORDINATOR,
        KEY,
        "tcp://*:5571",
    )
    assert config.models_dir == tmp_path / "models"
    assert stat.S_IMODE(os.stat(config.key_file).st_mode) == 0o600
    printed = capsys.readouterr()
    assert printed.out == f'[[devices]]\nname = "d1"\nkey = "{keys.public}"\n'
    assert fingerprint(keys.public) in printed.err
    assert keys.secret not in printed.out + printed.err + path.read_text(encoding="utf-8")


def test_init_overwrites_neither_configuration_nor_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    assert main(init(path, "--name", "d1")) == 0
    before = path.read_bytes(), (tmp_path / "agent.key").read_bytes()
    assert main(init(path, "--name", "d2")) == 1
    assert "exists already" in capsys.readouterr().err
    path.unlink()
    assert main(init(path, "--name", "d2")) == 1
    assert "agent.key" in capsys.readouterr().err
    assert not path.exists(), "a configuration without a key of its own is no use"
    assert (tmp_path / "agent.key").read_bytes() == before[1]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--name", "Not A Name"), "name"),
        (("--bind", "udp://x"), "bind"),
        (("--coordinator", "here"), "coordinator"),
        (("--coordinator-key", "short"), "coordinator_key"),
    ],
)
def test_init_with_a_bad_value_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], word: str
) -> None:
    path = tmp_path / "agent.toml"
    assert main([*init(path), *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: {word} ")
    assert list(tmp_path.iterdir()) == []


# --- run ---


def run(tmp_path: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return subprocess.run(
        [EDGE_AGENT, "run", "--config", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, **env},
    )


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    done = run(tmp_path, 'model_dir = "x"\n')
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/agent.toml: unknown key model_dir; did you mean models_dir?\n"


def test_an_unknown_variable_of_the_environment_is_named_too(tmp_path: Path) -> None:
    done = run(tmp_path, "", EDGE_AGENT__THREAD="3")
    assert done.returncode == 1
    assert "EDGE_AGENT__THREAD" in done.stderr
    assert "threads" in done.stderr


def test_a_missing_file_and_a_missing_key_are_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [EDGE_AGENT, "run", "--config", tmp_path / "none.toml"], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/none.toml: cannot be read")
    done = run(tmp_path, f'name = "d1"\ncoordinator = "{COORDINATOR}"\ncoordinator_key = "{KEY}"\n')
    assert done.returncode == 1
    assert done.stderr == f"error: no key at {tmp_path}/agent.key: make one with: edge-agent init\n"
