"""What README and CONTRIBUTING tell people to type is what works: every line of every `sh` block is known here.

Lines that make files are run in a directory of their own; lines that start servers name the test that runs them; every
flag is held against the command's own help.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig
from agent.config import load_config as load_agent_config
from edgectl.config import load_config as load_cluster_config

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = ("README.md", "CONTRIBUTING.md")
SCRIPTS = ("edgectl", "edge-agent")

RUN_ELSEWHERE = {
    "make demo": "tests/test_demo.py",
    "make test": ".ci/run",
    "make lint": ".ci/run",
    "edge-agent run": "edgectl/local_cluster.py",
    "edgectl serve": "edgectl/local_cluster.py",
    "edgectl profile": "tests/cluster/test_profile_plan_serve.py",
    "edgectl bench": "tests/cluster/test_readme_bench.py",
    "edgectl eval": "tests/cluster/test_readme_radio.py",
    "edgectl rl": "tests/cluster/test_readme_radio.py",
    "edgectl reproduce": "tests/cluster/test_splitting_quick.py",
    "edgectl status": "examples/demo.py",
    "edgectl generate": "examples/demo.py",
    "curl -N": "examples/demo.py",
}
"""First two words of a command → the file, itself run by a test or by CI, that runs it."""

GROUPS = {"device", "bench", "eval", "rl", "reproduce"}
"""Commands of two words."""

SYSTEM_COMMANDS = {"cp", "systemd-sysusers", "systemd-tmpfiles", "systemctl"}


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def all_commands() -> list[str]:
    return list(dict.fromkeys(command for page in PAGES for command in commands(page)))


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def help_of(words: list[str]) -> str:
    """The help of the innermost subcommand, at a width at which no flag is cut."""
    subcommand = []
    for word in words[1:]:
        if not re.fullmatch(r"[a-z]+", word):
            break
        subcommand.append(word)
    # A plain argument after a subcommand would be taken for another one.
    subcommand = subcommand[:2] if subcommand[:1] and subcommand[0] in GROUPS else subcommand[:1]
    env = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    command = [str(BIN / words[0]), *subcommand, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def test_both_pages_have_commands() -> None:
    assert all(commands(page) for page in PAGES)


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_known_and_its_flags_exist(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "sudo":
        assert words[1] in SYSTEM_COMMANDS
        sources = [word for word in words[2:] if word.startswith("systemd/")]
        assert all((ROOT / source).is_file() for source in sources)
        assert words[1] != "cp" or sources
    elif words[0] in SCRIPTS:
        shown = help_of(words)
        assert all(word.split("=")[0] in shown for word in words if word.startswith("--"))
    elif words[0] == "make":
        run("make", "-n", *words[1:], cwd=ROOT)
    elif Path(words[0]).name in {"pip", "python", "python3", "curl"}:
        paths = [word for word in words[1:] if word.startswith("tests/") or word == "constraints.txt"]
        assert all((ROOT / path).exists() for path in paths)
    else:
        pytest.fail(f"{command} is of a kind that no test runs")


@pytest.mark.parametrize(
    "command", [line for line in commands("README.md") if " ".join(line.split()[:2]) in RUN_ELSEWHERE]
)
def test_servers_are_started_by_the_test_that_is_named(command: str) -> None:
    words = shlex.split(command)
    place = (ROOT / RUN_ELSEWHERE[" ".join(words[:2])]).read_text(encoding="utf-8")
    assert words[0] in place
    assert words[1] in place


def needs_no_device(command: str) -> bool:
    return command.startswith(("edgectl plan", "edgectl reproduce edgeshard")) and "/srv/" not in command


@pytest.mark.parametrize("command", [line for line in commands("README.md") if needs_no_device(line)])
def test_plans_that_need_no_device_are_made(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    assert run(BIN / words[0], *words[1:], cwd=tmp_path)
    pictures = [word for word in words if word.endswith(".svg")]
    assert all((tmp_path / picture).read_text(encoding="utf-8").startswith("<?xml") for picture in pictures)


def test_the_plan_shown_is_the_plan_made(tmp_path: Path) -> None:
    (command,) = (line for line in commands("README.md") if "--testbed" in line)
    words = shlex.split(command)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text[text.index("```text\nllama2-13b") + len("```text\n") :].split("```")[0]
    assert shown == run(BIN / words[0], *words[1:], cwd=tmp_path)


def test_profile_plan_and_serve_run_in_this_order_elsewhere() -> None:
    place = (ROOT / "tests/cluster/test_profile_plan_serve.py").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in commands("README.md") if "plan.json" in line]
    assert [line[1] for line in lines] == ["plan", "serve"]
    assert all(word in place for line in lines for word in line if word.startswith("--"))


def test_the_steps_on_real_devices_make_a_cluster(tmp_path: Path) -> None:
    """Steps 1 to 3 as they stand in README, with the keys that were really made."""
    lines = [shlex.split(line) for line in commands("README.md")]
    (coordinator_init,) = (line for line in lines if line[:2] == ["edgectl", "init"])
    (agent_init,) = (line for line in lines if line[:2] == ["edge-agent", "init"])
    (device_add,) = (line for line in lines if line[:3] == ["edgectl", "device", "add"])
    printed = msgspec.toml.decode(run(BIN / coordinator_init[0], *coordinator_init[1:], cwd=tmp_path))
    agent_init[agent_init.index("--coordinator-key") + 1] = printed["coordinator_key"]
    (device,) = msgspec.toml.decode(run(BIN / agent_init[0], *agent_init[1:], cwd=tmp_path))["devices"]
    assert device["name"] == device_add[3]
    run(BIN / device_add[0], *device_add[1:4], device["key"], cwd=tmp_path)
    cluster = load_cluster_config(tmp_path / "cluster.toml", {})
    assert [(entry.name, entry.key) for entry in cluster.devices] == [(device["name"], device["key"])]
    agent = load_agent_config(tmp_path / "agent.toml", {})
    assert agent.coordinator_key == printed["coordinator_key"]
    assert agent.key_file.stat().st_mode & 0o077 == 0


def test_keys_of_the_configuration_table_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| Key of agent.toml") :].split("\n\n")[0]
    named = {key for row in table.splitlines()[2:] for key in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert named
    assert named <= set(AgentConfig.__struct_fields__)


@pytest.mark.parametrize("page", [*PAGES, "ARCHITECTURE.md", "CHANGELOG.md"])
def test_links_and_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []
    files = re.findall(r"`((?:agent|edgectl|planner|csrc|tests|docs|systemd|examples|benchmarks)/[\w./-]+)`", text)
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_nothing_is_left_to_fill_in() -> None:
    assert [page for page in PAGES if "@@" in (ROOT / page).read_text(encoding="utf-8")] == []
