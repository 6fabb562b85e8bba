"""The shipped units are valid, sealed and point at our console scripts; the example files are what the loaders read."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig
from agent.config import load_config as load_agent_config
from edgectl.config import CoordinatorConfig, DeviceConfig
from edgectl.config import load_config as load_cluster_config
from edgectl.links_config import LinkConfig

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "systemd"
UNITS = ("edge-agent.service", "edgectl-serve.service")
LARGEST_EXPOSURE = 1.6
"""Score of `systemd-analyze security`; without the sandbox lines the same units have 9.2."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def directives(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / unit).read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def commented_out(text: str) -> str:
    """The example with its commented settings switched on."""
    return re.sub(r"^# ([a-z_]+ = |\[\[[a-z]+\]\])", r"\1", text, flags=re.MULTILINE)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(unit: str, tmp_path: Path) -> None:
    text = (SYSTEMD / unit).read_text(encoding="utf-8")
    runnable = tmp_path / unit
    runnable.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(runnable)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if unit in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_the_sandbox_is_as_tight_as_promised(unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(SYSTEMD / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd older than 250 cannot score a file")
    score = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert score is not None, done.stdout + done.stderr
    assert float(score[1]) <= LARGEST_EXPOSURE


@pytest.mark.parametrize("unit", UNITS)
def test_units_start_our_console_scripts_with_the_shipped_paths(unit: str) -> None:
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (start,) = directives(unit)["ExecStart"]
    assert Path(start.split()[0]).name in project["scripts"]
    assert re.search(r"/etc/edgectl/(agent|cluster)\.toml", start)


def test_the_agent_reports_readiness_and_is_watched() -> None:
    unit = directives("edge-agent.service")
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) == 30


def test_accounts_of_the_units_are_created_with_their_directories() -> None:
    accounts = {line.split()[1] for line in lines("sysusers.d/edge-agent.conf") if line.startswith("u ")}
    homes = {line.split()[-1] for line in lines("sysusers.d/edge-agent.conf") if line.startswith("u ")}
    made = {line.split()[1]: line.split()[3] for line in lines("tmpfiles.d/edge-agent.conf")}
    assert {directives(unit)["User"][0] for unit in UNITS} == accounts
    assert homes <= made.keys()
    assert set(made.values()) <= accounts | {"root"}


def test_the_agent_example_decodes_and_keeps_to_the_units_directories() -> None:
    config = load_agent_config(SYSTEMD / "agent.toml.example", {})
    made = {line.split()[1] for line in lines("tmpfiles.d/edge-agent.conf")}
    assert {str(config.models_dir), str(config.cache_dir), str(config.key_file.parent)} <= made


def test_the_agent_example_documents_every_field_with_its_default(tmp_path: Path) -> None:
    text = (SYSTEMD / "agent.toml.example").read_text(encoding="utf-8")
    shown = msgspec.toml.decode(commented_out(text))
    assert shown.keys() == set(AgentConfig.__struct_fields__)
    commented = set(re.findall(r"^# ([a-z_]+) = ", text, flags=re.MULTILINE)) - {"name"}
    assert {key: shown[key] for key in commented} == {key: getattr(AgentConfig(), key) for key in commented}
    (tmp_path / "agent.toml").write_text(commented_out(text), encoding="utf-8")
    load_agent_config(tmp_path / "agent.toml", {})


def test_the_cluster_example_decodes_and_documents_every_field(tmp_path: Path) -> None:
    text = (SYSTEMD / "cluster.toml.example").read_text(encoding="utf-8")
    config = load_cluster_config(SYSTEMD / "cluster.toml.example", {})
    assert config.device_names() == ("orin-1", "gpu-box")
    shown = msgspec.toml.decode(commented_out(text))
    assert shown["coordinator"].keys() == set(CoordinatorConfig.__struct_fields__)
    assert shown["devices"][0].keys() == set(DeviceConfig.__struct_fields__)
    assert shown["links"][0].keys() == set(LinkConfig.__struct_encode_fields__)
    (tmp_path / "cluster.toml").write_text(commented_out(text), encoding="utf-8")
    assert load_cluster_config(tmp_path / "cluster.toml", {}).coordinator.http == CoordinatorConfig().http


@pytest.mark.parametrize("unit", UNITS)
def test_units_have_the_three_sections_once(unit: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.read(SYSTEMD / unit, encoding="utf-8")
    assert parser.sections() == ["Unit", "Service", "Install"]


def lines(name: str) -> list[str]:
    text = (SYSTEMD / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
