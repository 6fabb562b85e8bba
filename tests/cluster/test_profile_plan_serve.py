"""What a person does with three machines: profile, plan, serve, and see what was predicted beside what is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from edgectl.client import Client
from edgectl.profile_store import load_profile
from planner.profile import ClusterProfile
from tests.fakes import tegrastats
from tests.fakes.cluster_processes import ClusterProcesses
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR

pytestmark = pytest.mark.cluster

MODEL = ("--model", str(MODEL_DIR))
MEMORY_LIMIT = "44 MiB"
"""Of 59 that the whole model takes with 256 tokens of context: it has to be split."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    """Agents on three machines: a Jetson, one whose tegrastats is broken, and one that has none."""
    directory = tmp_path_factory.mktemp("cluster")
    lines = tegrastats.recorded_lines()
    jetson = tegrastats.install(directory / "jetson", [line for line in lines if "VDD_GPU_SOC" in line]).parent
    broken = tegrastats.install(directory / "broken", [lines[0][: len(lines[0]) // 3], "\x00garbage%%"]).parent
    with ClusterProcesses(directory) as processes:
        processes.agent("a", memory_limit=MEMORY_LIMIT, settings={"board": "agx-orin"}, programs=jetson)
        processes.agent("b", memory_limit=MEMORY_LIMIT, settings={"board": "agx-orin"}, programs=broken)
        processes.agent("c", memory_limit=MEMORY_LIMIT)
        yield processes


@pytest.fixture(scope="module")
def profile(cluster: ClusterProcesses) -> ClusterProfile:
    path = cluster.directory / "profile.json"
    flags = ("--quick", "--seconds", "1.5", "--wait", "60", "--out", str(path))
    result = edgectl("profile", "--cluster", str(cluster.cluster), *MODEL, *flags)
    assert result.exit_code == 0, result.stderr
    for name in "abc":
        assert f"measured {name}" in result.stderr
    assert "J/token" in result.stdout
    return load_profile(path)


@pytest.fixture(scope="module")
def plan(cluster: ClusterProcesses, profile: ClusterProfile) -> Path:
    out = cluster.directory / "plan.json"
    workload = ("--prompt", "8", "--tokens", "16", "--context", "256", "--batch", "1")
    flags = ("--profile", str(cluster.directory / "profile.json"), "--objective", "latency", "--out", str(out))
    result = edgectl("plan", *MODEL, *workload, *flags)
    assert result.exit_code == 0, result.stderr
    return out


def test_every_device_and_every_link_has_its_numbers(profile: ClusterProfile) -> None:
    assert [device.name for device in profile.devices] == ["a", "b", "c"]
    assert len({device.host for device in profile.devices}) == 1
    for device in profile.devices:
        assert all(point.layer.samples > 0 for point in device.decode)
        assert all(point.layer.samples > 0 for point in device.prefill)
        assert device.memory_bytes == 44 << 20
        assert device.fingerprint["weights"] == "the model's own"
    assert {(link.source, link.destination) for link in profile.links} == {
        (a, b) for a in "abc" for b in "abc" if a != b
    }
    assert (profile.model, profile.quantization, profile.spec.num_layers) == ("wiki-32l", "fp32", 32)


def test_a_jetson_says_what_a_token_costs(profile: ClusterProfile) -> None:
    power = profile.device("a").power
    assert power is not None, profile.device("a").missing
    assert power.source.startswith("tegrastats")
    assert power.joules_per_token_layer is not None
    assert power.joules_per_token_layer > 0
    assert power.decode_w > 0


@pytest.mark.parametrize(("name", "reason"), [("b", "wrote no whole line"), ("c", "no such program on PATH")])
def test_power_that_cannot_be_read_is_none_with_a_reason(profile: ClusterProfile, name: str, reason: str) -> None:
    device = profile.device(name)
    assert device.power is None
    assert reason in device.missing["power"]


def test_a_plan_is_served_as_it_is_and_its_prediction_stands_beside_the_measurement(
    cluster: ClusterProcesses, plan: Path
) -> None:
    planned: dict[str, Any] = json.loads(plan.read_text())
    assert len(planned["stages"]) >= 2
    coordinator = cluster.serve("--plan", str(plan))
    assert coordinator.until("predicted: ")
    ready = cluster.ready()
    assert [(each["name"], each["layers"]) for each in ready["devices"]] == [
        (stage["device"], stage["layers"]) for stage in planned["stages"]
    ]
    assert ready["predicted"]["ms_per_token"] == planned["predicted"]["ms_per_token"]
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me"}]
        answer = client.chat.completions.create(model="wiki-32l", messages=messages, max_tokens=24, seed=1)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 1
    status = settled_status(cluster)
    for shown, stage in zip(status["stages"], planned["stages"], strict=True):
        assert shown["predicted_compute_ms"] == pytest.approx(stage["compute_ms"], abs=1e-3)
        assert shown["predicted_hop_ms"] == pytest.approx(stage["hop_ms"], abs=1e-3)
        assert shown["compute_ms"] > 0
    assert status["predicted"]["measured_over_predicted"] > 0
    text = edgectl("status", "--url", cluster.url).stdout
    assert "predicted compute ms" in text
    assert "ms per token:" in text


def settled_status(cluster: ClusterProcesses) -> dict[str, Any]:
    """The status once every stage's device has told what it did; pytest's timeout bounds the wait."""
    with Client(cluster.url) as own:
        while True:
            status = own.status()
            if all(stage["compute_ms"] for stage in status["stages"]) and status["ms_per_token"]:
                return status


def test_profile_and_serve_do_not_go_together(cluster: ClusterProcesses, plan: Path) -> None:
    assert cluster.coordinator is not None
    result = edgectl("profile", "--cluster", str(cluster.cluster), *MODEL, "--wait", "0")
    assert result.exit_code != 0
    assert "stop `edgectl serve` first" in result.stderr


def test_measured_beside_predicted_by_plan_measure(cluster: ClusterProcesses, plan: Path) -> None:
    assert cluster.coordinator is not None
    assert cluster.coordinator.stop() == 0
    workload = ("--prompt", "8", "--tokens", "16", "--context", "256", "--batch", "1")
    flags = ("--profile", str(cluster.directory / "profile.json"), "--cluster", str(cluster.cluster))
    result = edgectl("plan", *MODEL, *workload, *flags, "--measure", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["predicted"]["ms_per_token"] > 0
    assert found["measured"]["ms_per_token"] > 0
