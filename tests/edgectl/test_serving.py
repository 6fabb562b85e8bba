"""`serve` from its configuration to its end, on real sockets; the devices are control connections of this test."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from agent.errors import ConfigError
from agent.wire.control_plane import ControlClient
from agent.wire.events import ControlConnected
from agent.wire.messages import PROTOCOL_VERSION, Hello, encode
from agent.wire.security import KeyPair, create_key_file, generate_keys, load_key_file
from edgectl.config import ClusterConfig, CoordinatorConfig, DeviceConfig
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.planning import ServingOptions
from edgectl.serving import Serving, Terminal, describe_plan, plan_as_json, serve_cluster
from tests.fakes.fake_agents import Scene
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.sockets import free_port


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


def cluster_of(directory: Path, keys: KeyPair) -> ClusterConfig:
    create_key_file(directory / "coordinator.key")
    return ClusterConfig(
        coordinator=CoordinatorConfig(
            bind=f"tcp://127.0.0.1:{free_port()}",
            key_file=directory / "coordinator.key",
            http=f"127.0.0.1:{free_port()}",
            state_dir=directory / "state",
        ),
        devices=(DeviceConfig(name="agx-1", key=keys.public),),
    )


def prepare(config: ClusterConfig) -> Serving:
    return Serving.prepare(config, str(MODEL_DIR), ServingOptions(), config.device_names(), None)


def say_hello(config: ClusterConfig, keys: KeyPair, memory_bytes: int, until: Callable[[], bool]) -> None:
    """One device's supervisor: connects, says Hello, and stays until the condition holds."""
    server_key = load_key_file(config.coordinator.key_file).public
    client = ControlClient(keys, config.coordinator.bind, server_key, "agx-1")
    try:
        while not until():
            for event in client.poll(50):
                if isinstance(event, ControlConnected):
                    hello = Hello(PROTOCOL_VERSION, "agx-1", "0.1.0", "b", "tcp://127.0.0.1:1", memory_bytes, "cpu")
                    client.send(encode(hello))
    finally:
        client.close()


def test_it_answers_503_while_it_waits_and_stops_on_sigterm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = cluster_of(tmp_path, generate_keys())
    serving = prepare(config)

    async def run() -> None:
        task = asyncio.create_task(serve_cluster(serving, as_json=True))
        async with httpx.AsyncClient(base_url=f"http://{config.coordinator.http}") as client:
            while True:
                try:
                    response = await client.post("/v1/completions", json={"model": "wiki-32l", "prompt": "x"})
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 20)

    asyncio.run(run())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "waiting for agx-1 at tcp://127.0.0.1:" in printed.err
    assert printed.err.endswith("stopping\n")
    assert (tmp_path / "state" / "start_counter").read_text() == "1\n"


def test_a_model_that_does_not_fit_ends_it_with_the_causes(tmp_path: Path) -> None:
    keys = generate_keys()
    config = cluster_of(tmp_path, keys)
    serving = prepare(config)

    async def run() -> None:
        task = asyncio.create_task(serve_cluster(serving, as_json=False))
        device = asyncio.create_task(asyncio.to_thread(say_hello, config, keys, 1 << 20, task.done))
        with pytest.raises(CommandFailure, match="agx-1") as failed:
            await asyncio.wait_for(task, 30)
        await device
        assert failed.value.exit_code == ExitCode.MEMORY
        assert "MiB" in str(failed.value)

    asyncio.run(run())


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    config = cluster_of(tmp_path, generate_keys())
    serving = prepare(config)

    async def run() -> None:
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", int(config.coordinator.http[10:]))
        async with taken:
            with pytest.raises(ConfigError, match="cannot serve HTTP"):
                await asyncio.wait_for(serve_cluster(serving, as_json=False), 20)

    asyncio.run(run())


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    config = cluster_of(tmp_path, generate_keys())
    config.coordinator.key_file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        asyncio.run(serve_cluster(prepare(config), as_json=False))


def test_the_plan_as_a_table_and_as_json() -> None:
    scene = Scene().ready()
    plan = scene.cluster.deployment.plan
    assert plan is not None
    assert describe_plan(plan, scene.cluster.devices).splitlines()[1].split() == (
        ["a", "[0,", "2)", "1", "MiB", "of", "1", "MiB", "cpu"]
    )
    devices = plan_as_json(plan)["devices"]
    assert isinstance(devices, list)
    assert devices[2] == {"name": "c", "layers": [4, 6], "memory_bytes": 10, "memory_available_bytes": 100}


def test_a_plan_that_fails_later_does_not_end_the_service() -> None:
    from edgectl.effects import NoPlan, Ready

    async def run() -> None:
        scene = Scene().ready()
        terminal = Terminal(scene.cluster.devices, as_json=False)
        assert scene.cluster.deployment.plan is not None
        terminal.ready(Ready(scene.cluster.deployment.plan, 1))
        terminal.no_plan(NoPlan("out_of_memory", "does not fit"))
        assert not terminal.no_plan_found.done()

    asyncio.run(run())
