"""`edgectl serve --policy` with real agents: a client's session moves on a fading emulated link and notices nothing."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from agent.compute.calibration import calibration_file
from agent.compute.executor import Executor
from agent.compute.receiver import Receiver
from agent.wire.messages import Sampling
from edgectl.adaptive_bench.damage_replay import RecordedSession, Schedule, load_all_layers, load_receiver, replay
from edgectl.client import Client
from edgectl.failures import ExitCode
from edgectl.model_source import LocatedModel, describe_model, locate_model
from edgectl.planning import ServedModel, ServingOptions
from edgectl.quality.calibrating import calibrate_model, calibration_subject
from planner.channel import Channel, ChannelState
from rl.trace import dump_trace
from tests.fakes.cluster_processes import ClusterProcesses
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.hand_made_policy import SPLITS, write_hand_made_policy

pytestmark = pytest.mark.cluster

PROMPT = list(range(300, 340))
TOKENS = 160
CONTEXT = 512
HOLD_TOKENS = 40
"""The channel is bad and good by turns for so long."""
CHANNEL = Channel(
    (ChannelState(loss=0.02, m=2.5), ChannelState(loss=0.25, sigma=0.1, m=0.6)),
    seed=11,
    coherence_tokens=HOLD_TOKENS,
    concealment="lmmse",
)
EVERY, DWELL = 8, 16
LATENCY_MS = 3.0


def links_toml() -> str:
    return "".join(
        f'\n[[links]]\nfrom = "{source}"\nto = "{destination}"\nlatency_ms = {LATENCY_MS}\n{channel}'
        for source, destination, channel in (("a", "b", 'channel = "trace.json"\n'), ("b", "a", ""))
    )


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a calibration beside it, as devices have that conceal with `lmmse`."""
    directory = tmp_path_factory.mktemp("models")
    (directory / MODEL_DIR.name).symlink_to(MODEL_DIR)
    path = calibration_file(directory, MODEL_DIR.name)
    calibrate_model(calibration_subject(str(MODEL_DIR), None, 2048, 256), SPLITS, path, lambda done, total: None)
    return directory


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return describe_model(locate_model(str(MODEL_DIR)))


@pytest.fixture(scope="module")
def whole() -> Iterator[Executor]:
    executor = load_all_layers(locate_model(str(MODEL_DIR)), ServingOptions(), CONTEXT, SPLITS)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def receiver(models_dir: Path, model: ServedModel) -> Receiver:
    return load_receiver(LocatedModel(MODEL_DIR.name, models_dir / MODEL_DIR.name), model)


def on_a_fading_link(directory: Path) -> ClusterProcesses:
    """Two devices, nothing started yet."""
    processes = ClusterProcesses(directory, devices=("a", "b"))
    (directory / "trace.json").write_text(dump_trace(CHANNEL))
    with processes.cluster.open("a") as file:
        file.write(links_toml())
    return processes


def eager(policy: Path, *more: str) -> tuple[str, ...]:
    """Flags of serve: decide often, so that a short session moves several times."""
    often = ("--decide-every", str(EVERY), "--dwell", str(DWELL))
    return ("--policy", str(policy), *often, "--context", str(CONTEXT), "--sessions", "2", "--source", "a", *more)


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, model: ServedModel
) -> Iterator[ClusterProcesses]:
    directory = tmp_path_factory.mktemp("adaptive")
    with on_a_fading_link(directory) as processes:
        processes.serve(*eager(write_hand_made_policy(directory / "policy.onnx", model)))
        for name in processes.devices:
            processes.agent(name, models_dir=models_dir)
        processes.ready()
        yield processes


@pytest.fixture
def client(cluster: ClusterProcesses) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def streamed(client: openai.OpenAI, prompt: list[int], seed: int | None = None) -> Iterator[tuple[float, list[int]]]:
    """(arrival, ids) of each piece of an answer; greedy without a seed."""
    stream = client.completions.create(
        model="wiki-32l",
        prompt=prompt,
        max_tokens=TOKENS,
        temperature=0.0 if seed is None else 0.8,
        seed=seed,
        stream=True,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            ids = (choice.model_extra or {}).get("token_ids") or []
            if ids:
                yield time.monotonic(), ids


def status_of(cluster: ClusterProcesses) -> dict[str, Any]:
    with Client(cluster.url) as own:
        found: dict[str, Any] = own.status()
    return found


def last_schedule(status: dict[str, Any], nth: int = 1) -> Schedule:
    return tuple((position, split) for position, split in status["schedules"][-nth]["schedule"])


def offline(
    whole: Executor, schedule: Schedule, prompt: list[int], seed: int | None = None, receiver: Receiver | None = None
) -> list[int]:
    recorded = RecordedSession(
        prompt=tuple(prompt),
        max_tokens=TOKENS,
        sampling=Sampling(temperature=0.0) if seed is None else Sampling(seed=seed, temperature=0.8),
        schedule=schedule,
        channel=CHANNEL,
    )
    return list(replay(whole, recorded, receiver))


def test_a_policy_moves_a_live_session_and_its_tokens_are_those_of_one_process(
    cluster: ClusterProcesses, client: openai.OpenAI, whole: Executor, receiver: Receiver
) -> None:
    pieces = list(streamed(client, PROMPT))
    tokens = [token for _, ids in pieces for token in ids]
    assert len(tokens) == TOKENS
    status = status_of(cluster)
    schedule = last_schedule(status)
    assert len(schedule) >= 4, "the channel was bad and good by turns"
    assert {split for _, split in schedule} <= set(SPLITS)
    assert tokens == offline(whole, schedule, PROMPT, receiver=receiver)
    assert tokens != offline(whole, schedule, PROMPT), "without what the devices know of the model nothing is the same"
    adaptive = status["adaptive"]
    assert adaptive["controller"] == "policy"
    assert adaptive["moves"]["moved"] >= len(schedule) - 1
    (batch, *_) = adaptive["micro_batches"]
    assert batch["link"]["emulated"]
    assert batch["reason"]
    gaps_ms = sorted(1e3 * (after - before) for (before, _), (after, _) in pairwise(pieces))
    print(f"{len(schedule) - 1} moves: median {gaps_ms[len(gaps_ms) // 2]:.1f} ms, longest {gaps_ms[-1]:.1f} ms")
    assert gaps_ms[-1] < 3 * gaps_ms[len(gaps_ms) // 2] + 500, "beyond what a busy machine explains"


def test_up_where_much_is_lost_and_down_where_little_is(cluster: ClusterProcesses, client: openai.OpenAI) -> None:
    list(streamed(client, PROMPT, seed=3))
    schedule = last_schedule(status_of(cluster))
    for (_, before), (position, after) in pairwise(schedule):
        # What is decided at one token happens some tokens later, when keys and values are there.
        recent = {CHANNEL.state_at(max(0, position - back)).loss for back in range(DWELL + EVERY)}
        assert (0.25 if after > before else 0.02) in recent, schedule


def test_sessions_side_by_side_have_their_own_schedules(
    cluster: ClusterProcesses, client: openai.OpenAI, whole: Executor, receiver: Receiver
) -> None:
    prompts = {"one": PROMPT, "other": PROMPT[::-1][:20]}
    running = {name: streamed(client, prompt, seed=5) for name, prompt in prompts.items()}
    tokens: dict[str, list[int]] = {name: [] for name in prompts}
    while running:
        for name, stream in list(running.items()):
            piece = next(stream, None)
            if piece is None:
                del running[name]
            else:
                tokens[name] += piece[1]
    ended = status_of(cluster)["schedules"][-2:]
    by_length = {entry["prompt_tokens"]: tuple(map(tuple, entry["schedule"])) for entry in ended}
    for name, prompt in prompts.items():
        assert tokens[name] == offline(whole, by_length[len(prompt)], prompt, seed=5, receiver=receiver), name


def test_a_worker_that_dies_costs_its_session_and_the_next_one_moves_again(
    cluster: ClusterProcesses, client: openai.OpenAI, whole: Executor, receiver: Receiver
) -> None:
    stream = streamed(client, PROMPT)
    for _ in range(30):
        next(stream)
    (worker,) = psutil.Process(cluster.agents["b"].process.pid).children()
    worker.kill()
    with pytest.raises(openai.APIError, match="worker"):
        list(stream)
    cluster.ready()
    tokens = [token for _, ids in streamed(client, PROMPT) for token in ids]
    schedule = last_schedule(status_of(cluster))
    assert len(schedule) >= 3
    assert tokens == offline(whole, schedule, PROMPT, receiver=receiver)


def test_metrics_show_what_status_shows(cluster: ClusterProcesses) -> None:
    with urllib.request.urlopen(f"{cluster.url}/metrics", timeout=5) as response:
        text = response.read().decode()
    adaptive = status_of(cluster)["adaptive"]
    (batch, *_) = adaptive["micro_batches"]
    for name, value in (
        ('edge_split_layers{micro_batch="0",route="0"}', batch["split"]),
        ('edge_split_moves_total{outcome="moved"}', adaptive["moves"]["moved"]),
        ("edge_split_decision_seconds_count", adaptive["decisions"]),
    ):
        assert f"{name} {float(value)}\n" in text
    assert "edge_split_proposal" in text


def test_shadow_only_says_what_it_would_do(tmp_path: Path, model: ServedModel, whole: Executor) -> None:
    with on_a_fading_link(tmp_path) as processes:
        policy = write_hand_made_policy(tmp_path / "policy.onnx", model)
        processes.start_all(*eager(policy, "--shadow"))
        with openai.OpenAI(base_url=f"{processes.url}/v1", api_key="none", max_retries=0) as client:
            tokens = [token for _, ids in streamed(client, PROMPT) for token in ids]
        status = status_of(processes)
        schedule = last_schedule(status)
        assert len(schedule) == 1
        assert tokens == offline(whole, schedule, PROMPT)
        assert status["adaptive"]["shadow"]
        assert status["adaptive"]["moves"]["moved"] == 0
        assert status["adaptive"]["held"]["shadow"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_layers": 28}, ("28 layers", "wiki-32l has 32")), ({"digest": "0" * 64}, ("digest 000000000000",))],
)
def test_a_policy_of_another_model_is_refused_by_name(
    tmp_path: Path, model: ServedModel, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    policy = write_hand_made_policy(tmp_path / "other.onnx", model, **changes)
    assert_refused(policy, "other.onnx", *words)


@pytest.mark.parametrize(("name", "data"), [("p.onnx", b"nonsense"), ("p.json", b"{}"), ("p.json", b"\xff\xfe")])
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert_refused(tmp_path / name, name)


def assert_refused(policy: Path, *words: str) -> None:
    """`edgectl serve` ends before it listens, saying why."""
    processes = ClusterProcesses(policy.parent, devices=("a", "b"))
    found = edgectl("serve", "--cluster", str(processes.cluster), "--model", str(MODEL_DIR), "--policy", str(policy))
    assert found.exit_code == ExitCode.CONFIG, found.output
    for word in words:
        assert word in found.output
    assert "Traceback" not in found.output
