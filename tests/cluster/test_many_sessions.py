"""Many clients at once on real processes: eight on two routes, one that leaves, one too many, one that is too long."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest

from edgectl.client import Client
from tests.fakes.cluster_processes import ClusterProcesses
from tests.fakes.fake_engine import MODEL_DIR

pytestmark = pytest.mark.cluster

CONTEXT = 512
MAX_QUEUED = 3
ROUTES = (
    {"stages": [("a", 0, 11), ("b", 11, 32)], "micro_batches": 2, "rows": 2},
    {"stages": [("a", 0, 11), ("c", 11, 32)], "micro_batches": 1, "rows": 4},
)
ROWS = 8
WORDS = "The history of the sea begins with those who went to look for what was beyond it . "


def plan_of() -> dict[str, Any]:
    """Two routes behind one source, as `edgectl plan --replicas --out` writes them."""
    slots = {"a": 8, "b": 4, "c": 4}
    resident = {"a": [0, 11], "b": [11, 32], "c": [11, 32]}
    return {
        "model": MODEL_DIR.name,
        "quantization": "fp32",
        "block_size": 128,
        "boundary": "fp16",
        "codec": "fp16",
        "context": CONTEXT,
        "routes": [
            {**route, "stages": [{"device": d, "layers": [start, stop]} for d, start, stop in route["stages"]]}
            for route in ROUTES
        ],
        "allotments": [
            {"device": d, "resident": [resident[d]], "slots": slots[d], "memory_bytes": 1, "memory_available_bytes": 2}
            for d in slots
        ],
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    directory = tmp_path_factory.mktemp("cluster")
    (directory / "plan.json").write_text(json.dumps(plan_of()))
    with ClusterProcesses(directory) as processes:
        text = processes.cluster.read_text()
        processes.cluster.write_text(text.replace("[coordinator]", f"[coordinator]\nmax_queued = {MAX_QUEUED}"))
        processes.start_all("--plan", str(directory / "plan.json"))
        yield processes


@pytest.fixture(scope="module")
def client(cluster: ClusterProcesses) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def request(number: int, max_tokens: int = 40) -> dict[str, Any]:
    """One of the requests, each with a prompt, a length of it and a seed of its own."""
    return {
        "model": "wiki-32l",
        "prompt": f"{number} " + WORDS * (1 + 2 * (number % 3)),
        "max_tokens": max_tokens,
        "seed": number,
        "temperature": 0.9,
        "extra_body": {"ignore_eos": True, "return_token_ids": True},
    }


def ids(client: openai.OpenAI, number: int, max_tokens: int = 40) -> list[int]:
    answer = client.completions.create(**request(number, max_tokens))
    found: list[int] = answer.choices[0].to_dict()["token_ids"]  # type: ignore[assignment]
    assert len(found) == max_tokens
    return found


def all_at_once(client: openai.OpenAI, max_tokens: int) -> list[list[int]]:
    with ThreadPoolExecutor(ROWS) as pool:
        return list(pool.map(lambda number: ids(client, number, max_tokens), range(ROWS)))


def status_when(cluster: ClusterProcesses, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first status that satisfies a condition; pytest's timeout bounds the wait."""
    with Client(cluster.url) as own:
        while True:
            status = own.status()
            if condition(status):
                return status


def is_idle(status: dict[str, Any]) -> bool:
    return status["sessions"]["rows_in_use"] == 0 and status["sessions"]["queued"] == 0


class Streams:
    """Answers that are being read, a thread each; `tokens` of each grow as they come."""

    def __init__(self, client: openai.OpenAI, count: int, max_tokens: int) -> None:
        self.tokens: dict[int, list[int]] = {number: [] for number in range(count)}
        self.failed: set[int] = set()
        self._client = client
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(number, max_tokens)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _read(self, number: int, max_tokens: int) -> None:
        try:
            stream = self._client.completions.create(**request(number, max_tokens), stream=True)
            for chunk in stream:
                for choice in chunk.choices:
                    self.tokens[number] += choice.to_dict().get("token_ids") or []  # type: ignore[operator]
                if self._closing.is_set():
                    stream.close()
                    return
        except openai.APIError:
            self.failed.add(number)

    def close(self) -> None:
        self._closing.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_eight_at_once_get_the_tokens_that_each_gets_alone(cluster: ClusterProcesses, client: openai.OpenAI) -> None:
    alone = [ids(client, number) for number in range(ROWS)]
    assert all_at_once(client, 40) == alone
    status = status_when(cluster, is_idle)
    assert status["sessions"]["failed"] == 0
    assert status["frames_refused"] == {}
    assert [route["devices"] for route in status["routes"]] == [["a", "b"], ["a", "c"]]
    assert [len(route["micro_batches"]) for route in status["routes"]] == [2, 1]
    assert [route["rows"] for route in status["routes"]] == [4, 4]
    assert all(route["ms_per_token"] > 0 for route in status["routes"]), "both routes were used"


def test_a_client_that_leaves_while_its_prompt_is_computed_frees_its_row(
    cluster: ClusterProcesses, client: openai.OpenAI
) -> None:
    expected = ids(client, 1)
    streams = Streams(client, ROWS - 1, 200)
    status_when(cluster, lambda status: status["sessions"]["rows_in_use"] == ROWS - 1)
    prompt = WORDS * 15
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model="wiki-32l", prompt=prompt, max_tokens=100, timeout=0.03)
    status_when(cluster, lambda status: status["sessions"]["rows_in_use"] < ROWS)
    assert ids(client, 1) == expected
    streams.close()
    status_when(cluster, is_idle)


def test_one_more_than_rows_and_queue_hold_is_told_when_to_come_back(
    cluster: ClusterProcesses, client: openai.OpenAI
) -> None:
    streams = Streams(client, ROWS + MAX_QUEUED, 350)
    status = status_when(cluster, lambda status: status["sessions"]["queued"] == MAX_QUEUED)
    assert status["sessions"]["rows_in_use"] == status["sessions"]["rows"] == ROWS
    with pytest.raises(openai.RateLimitError) as refused:
        client.completions.create(**request(99))
    assert refused.value.code == "queue_full"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
    streams.close()
    assert not streams.failed
    status_when(cluster, is_idle)


def test_a_session_longer_than_the_context_is_refused_before_it_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="wiki-32l", prompt=WORDS, max_tokens=CONTEXT)
    assert refused.value.code == "context_length_exceeded"
    assert str(CONTEXT) in str(refused.value)


def test_a_worker_that_dies_costs_the_sessions_of_its_route_alone(
    cluster: ClusterProcesses, client: openai.OpenAI
) -> None:
    expected = all_at_once(client, 160)
    streams = Streams(client, ROWS, 160)
    status_when(cluster, lambda status: [route["rows_in_use"] for route in status["routes"]] == [4, 4])
    (worker,) = psutil.Process(cluster.agents["b"].process.pid).children()
    worker.kill()
    streams.join()
    assert len(streams.failed) == 4
    for number in set(streams.tokens) - streams.failed:
        assert streams.tokens[number] == expected[number]
    for number in streams.failed:
        assert streams.tokens[number] == expected[number][: len(streams.tokens[number])]
    status_when(cluster, lambda status: [route["rows"] for route in status["routes"]] == [4, 4])
    assert all_at_once(client, 160) == expected
