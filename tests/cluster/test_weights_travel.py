"""Three agents, two of which have no model: they get their layers from the coordinator and from each other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes.cluster_processes import ClusterProcesses, Printing
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR

pytestmark = pytest.mark.cluster

INT4 = ("--quantize", "int4", "--block-size", "32")
ASKED = ("The history of the", "--json", "--ignore-eos", "--max-tokens", "40", "--temperature", "0")
MODEL_BYTES = (MODEL_DIR / "model.safetensors").stat().st_size


@pytest.fixture(scope="module")
def local_ids() -> list[int]:
    """What one process with the whole model says."""
    result = edgectl("generate", *ASKED, "--local", "--model", str(MODEL_DIR), *INT4)
    assert result.exit_code == 0, result.stderr
    tokens: list[int] = json.loads(result.stdout)["ids"]
    return tokens


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterProcesses]:
    """Device a has the model; b and c have empty directories and caches of their own. The coordinator's cache too is
    below the test's directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "empty").mkdir()
    with ClusterProcesses(tmp_path) as processes:
        yield processes


def start(cluster: ClusterProcesses, name: str, **settings: str) -> Printing:
    models_dir = MODEL_DIR.parent if name == "a" else cluster.directory / "empty"
    own = {"cache_dir": str(cluster.directory / f"cache-{name}"), "bulk_bind": "tcp://127.0.0.1:0", **settings}
    return cluster.agent(name, models_dir=models_dir, settings=own)


def ids(cluster: ClusterProcesses) -> list[int]:
    result = edgectl("generate", *ASKED, "--url", cluster.url)
    assert result.exit_code == 0, result.stderr
    tokens: list[int] = json.loads(result.stdout)["ids"]
    return tokens


def kept(cluster: ClusterProcesses, name: str, suffix: str = "safetensors") -> list[Path]:
    return sorted((cluster.directory / f"cache-{name}").rglob(f"*.{suffix}"))


def fetched(agent: Printing, model: str = "wiki-32l") -> dict[str, int]:
    """Bytes of weights that a device got, by source."""
    for line in agent.lines:
        if "weights_fetched" in line:
            given: dict[str, int] = json.loads(line)["bytes"]
            return given
    raise AssertionError(f"no weights were fetched:\n{''.join(agent.lines)}")


def kill(agent: Printing) -> None:
    """As a power failure would: no process of it says goodbye."""
    supervisor = psutil.Process(agent.process.pid)
    for process in (supervisor, *supervisor.children()):
        process.kill()
    agent.rest()
    agent.stop()


def limit_rate(cluster: ClusterProcesses, rate: str) -> None:
    text = cluster.cluster.read_text()
    cluster.cluster.write_text(text.replace('state_dir = "state"', f'state_dir = "state"\nbulk_rate = "{rate}"'))


def test_two_devices_without_the_model_serve_their_layers(cluster: ClusterProcesses, local_ids: list[int]) -> None:
    cluster.serve(*INT4)
    agents = {name: start(cluster, name) for name in cluster.devices}
    cluster.ready()
    assert ids(cluster) == local_ids
    for name in "bc":
        agents[name].until("weights_fetched")
        total = sum(fetched(agents[name]).values())
        # About a third of the model's layers at four bits instead of sixteen.
        assert 0 < total < MODEL_BYTES / 3 / 2
        assert sum(path.stat().st_size for path in kept(cluster, name)) < 1.2 * total
        assert not kept(cluster, name, "partial")


def test_a_device_that_was_killed_goes_on_where_it_was(cluster: ClusterProcesses, local_ids: list[int]) -> None:
    limit_rate(cluster, "400 kB")
    cluster.serve(*INT4)
    for name in cluster.devices:
        start(cluster, name)
    deadline = time.monotonic() + 60
    while len(kept(cluster, "c")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = kept(cluster, "c")
    kill(cluster.agents["c"])
    assert kept(cluster, "c", "partial")
    marks = {path: path.stat().st_ino for path in before}
    again = start(cluster, "c")
    cluster.ready()
    assert ids(cluster) == local_ids
    again.until("weights_fetched")
    whole = sum(path.stat().st_size for path in kept(cluster, "c"))
    assert 0 < sum(fetched(again).values()) <= whole - sum(path.stat().st_size for path in before)
    assert {path: path.stat().st_ino for path in before} == marks


def test_a_damaged_byte_at_a_peer_is_refused_named_and_fetched_elsewhere(
    cluster: ClusterProcesses, local_ids: list[int]
) -> None:
    """c served these layers before and has them all; one byte of what it keeps flips, under a mark that says it is as
    it was when it was checked: only who receives it can tell. Then b, which lost its cache, asks c for them."""
    cluster.serve(*INT4)
    for name in cluster.devices:
        start(cluster, name)
    cluster.ready()
    assert ids(cluster) == local_ids
    cluster.agents["b"].stop()
    keys = kept(cluster, "b")
    damaged = "layer-015.safetensors"
    assert damaged in [path.name for path in keys]
    for path in keys:
        target = cluster.directory / "cache-c" / path.relative_to(cluster.directory / "cache-b")
        data = bytearray(path.read_bytes())
        if path.name == damaged:
            data[-100] ^= 1
        target.write_bytes(data)
        status = target.stat()
        state = {
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "changed_ns": status.st_ctime_ns,
            "inode": status.st_ino,
        }
        target.with_suffix(".mark").write_text(json.dumps(state))
        path.unlink()
    again = start(cluster, "b")
    refused = again.until("weights_refused")
    assert "layer-015" in refused
    assert "from c does not match its digest" in refused
    cluster.ready()
    assert ids(cluster) == local_ids
    again.until("weights_fetched")
    assert set(fetched(again)) >= {"coordinator", "c"}
    assert fetched(again)["c"] > 0
    assert fetched(again)["coordinator"] > 0
