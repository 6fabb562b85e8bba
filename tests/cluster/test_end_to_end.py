"""Real processes on loopback: a coordinator and three agents, asked by the official client."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from agent.wire.control_plane import ControlClient
from agent.wire.events import ControlConnected, Controlled
from agent.wire.messages import PROTOCOL_VERSION, Hello, Rejected, ToAgent, decode, encode
from agent.wire.security import create_key_file, load_key_file
from edgectl.client import Client
from edgectl.failures import ExitCode
from tests.fakes.cluster_processes import ClusterProcesses
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR

pytestmark = pytest.mark.cluster

PROMPT = "The history of the"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with ClusterProcesses(tmp_path_factory.mktemp("cluster")) as processes:
        processes.start_all()
        yield processes


@pytest.fixture
def client(cluster: ClusterProcesses) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ids(cluster: ClusterProcesses, *flags: str) -> list[int]:
    result = edgectl("generate", PROMPT, "--url", cluster.url, "--json", "--ignore-eos", *flags)
    assert result.exit_code == 0, result.stderr
    tokens: list[int] = json.loads(result.stdout)["ids"]
    return tokens


def local_ids(*flags: str) -> list[int]:
    result = edgectl("generate", PROMPT, "--local", "--model", str(MODEL_DIR), "--json", "--ignore-eos", *flags)
    assert result.exit_code == 0, result.stderr
    tokens: list[int] = json.loads(result.stdout)["ids"]
    return tokens


def test_greedy_tokens_are_those_of_one_process(cluster: ClusterProcesses) -> None:
    flags = ("--max-tokens", "200", "--temperature", "0")
    there = ids(cluster, *flags)
    assert len(there) == 200
    assert there == local_ids(*flags)


def test_a_seed_gives_the_same_tokens_as_in_one_process(cluster: ClusterProcesses) -> None:
    flags = ("--max-tokens", "40", "--temperature", "0.9", "--seed", "5")
    assert ids(cluster, *flags) == ids(cluster, *flags) == local_ids(*flags)


def test_the_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="wiki-32l", prompt=PROMPT, max_tokens=20, seed=3)
    pieces = client.completions.create(
        model="wiki-32l", prompt=PROMPT, max_tokens=20, seed=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(pieces)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_a_chat_with_a_stop_string_and_log_probabilities(client: openai.OpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me of the sea"}]
    free = client.chat.completions.create(model="wiki-32l", messages=messages, max_tokens=30, seed=1)
    text = free.choices[0].message.content or ""
    stop = text[len(text) // 2 :][:3]
    stopped = client.chat.completions.create(
        model="wiki-32l", messages=messages, max_tokens=30, seed=1, stop=[stop], logprobs=True, top_logprobs=2
    )
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    shown = stopped.choices[0].logprobs
    assert shown is not None
    assert shown.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in shown.content)


def test_a_client_that_leaves_frees_the_row(cluster: ClusterProcesses, client: openai.OpenAI) -> None:
    stream = client.completions.create(model="wiki-32l", prompt=PROMPT, max_tokens=2000, stream=True)
    next(iter(stream))
    stream.close()
    # The next session gets the only row as soon as the first one has given it up.
    assert client.completions.create(model="wiki-32l", prompt=PROMPT, max_tokens=2).usage is not None
    with Client(cluster.url) as own:
        assert own.status()["sessions"]["running"] == 0


def test_status_says_where_a_token_spends_its_time(cluster: ClusterProcesses) -> None:
    ids(cluster, "--max-tokens", "20")
    with Client(cluster.url) as own:
        status = own.status()
    assert [device["state"] for device in status["devices"]] == ["ready"] * 3
    assert [stage["layers"] for stage in status["stages"]] == [[0, 11], [11, 22], [22, 32]]
    assert all(stage["compute_ms"] > 0 and stage["bytes_per_frame"] > 0 for stage in status["stages"])
    assert status["tokens_per_s"] > 0
    assert status["frames_refused"] == {}


def test_a_worker_that_dies_costs_its_sessions_and_nothing_else(
    cluster: ClusterProcesses, client: openai.OpenAI
) -> None:
    stream = client.completions.create(model="wiki-32l", prompt=PROMPT, max_tokens=2000, stream=True)
    next(iter(stream))
    (worker,) = psutil.Process(cluster.agents["b"].process.pid).children()
    worker.kill()
    with pytest.raises(openai.APIError, match="worker"):
        list(stream)
    cluster.ready()
    flags = ("--max-tokens", "10", "--temperature", "0")
    assert ids(cluster, *flags) == local_ids(*flags)


def test_a_device_that_is_lost_is_named_and_may_come_back(cluster: ClusterProcesses, client: openai.OpenAI) -> None:
    agent = psutil.Process(cluster.agents["c"].process.pid)
    for process in (*agent.children(), agent):
        process.kill()
    assert cluster.coordinator is not None
    cluster.coordinator.until("c is lost")
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(model="wiki-32l", prompt=PROMPT)
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) > 0
    cluster.agents["c"].stop()
    cluster.agent("c")
    cluster.ready()
    assert client.completions.create(model="wiki-32l", prompt=PROMPT, max_tokens=2).choices


def test_a_coordinator_that_restarts_takes_the_loaded_devices_over(cluster: ClusterProcesses) -> None:
    assert cluster.coordinator is not None
    assert cluster.coordinator.stop() == 0
    cluster.serve()
    cluster.ready()
    assert len(ids(cluster, "--max-tokens", "3")) == 3
    assert (cluster.directory / "state" / "start_counter").read_text() == "2\n"


def test_another_protocol_version_is_refused_naming_both(cluster: ClusterProcesses) -> None:
    keys = load_key_file(cluster.key_file("a"))
    agent = ControlClient(keys, f"tcp://127.0.0.1:{cluster.control_port}", cluster.coordinator_key, "a")
    try:
        while True:
            for event in agent.poll(100):
                if isinstance(event, ControlConnected):
                    agent.send(encode(Hello(PROTOCOL_VERSION + 1, "a", "9.9.9", "b", "tcp://127.0.0.1:1", 1, "cpu")))
                elif isinstance(event, Controlled):
                    message = decode(event.data, ToAgent)
                    assert isinstance(message, Rejected)
                    assert f"protocol {PROTOCOL_VERSION + 1}" in message.detail
                    assert f"protocol {PROTOCOL_VERSION} " in message.detail
                    return
    finally:
        agent.close()


def test_int4_on_three_devices_is_int4_in_one_process(tmp_path: Path) -> None:
    flags = ("--max-tokens", "200", "--temperature", "0")
    with ClusterProcesses(tmp_path) as processes:
        processes.start_all("--quantize", "int4")
        assert ids(processes, *flags) == local_ids("--quantize", "int4", *flags)


def test_a_key_that_is_not_listed_does_not_join(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, devices=("a",)) as processes:
        processes.serve()
        create_key_file(tmp_path / "stranger.key")
        processes.agent("a", key_file=tmp_path / "stranger.key").until("coordinator_refused_key")
        processes.agents["a"].stop()
        processes.agent("a")
        assert processes.ready()["devices"][0]["layers"] == [0, 32]


def test_another_copy_of_the_model_is_not_used_but_the_coordinators(tmp_path: Path) -> None:
    other = tmp_path / "models" / MODEL_DIR.name
    shutil.copytree(MODEL_DIR, other)
    config = other / "config.json"
    config.write_text(config.read_text() + "\n")
    flags = ("--max-tokens", "20", "--temperature", "0")
    with ClusterProcesses(tmp_path, devices=("a", "b")) as processes:
        processes.serve()
        processes.agent("a")
        processes.agent("b", models_dir=other.parent)
        processes.ready()
        assert ids(processes, *flags) == local_ids(*flags)


def test_too_little_memory_says_how_much_is_missing_and_where(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, devices=("a", "b")) as processes:
        coordinator = processes.serve()
        for name in processes.devices:
            processes.agent(name, memory_limit="24 MiB")
        text = coordinator.rest()
        assert coordinator.stop() == ExitCode.MEMORY
        for part in ("MiB", "a", "b", "hint:"):
            assert part in text
