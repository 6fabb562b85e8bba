"""Devices that stand apart on this machine: what is asked of a cluster of each kind, and one that serves."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edgectl.links_config import LinkConfig
from edgectl.netns import NamespacesUnavailable, Uplink
from edgectl.netns_bench import Setting, as_json, compare, describe, links_toml
from tests.fakes.fake_engine import MODEL_DIR

ROWS = [
    {"way": "loopback", "tokens_per_s": 100.04, "ms_per_token": 9.876, "failed": 0},
    {"way": "emulated", "tokens_per_s": 10.0, "ms_per_token": None, "failed": 0},
]


def test_links_are_what_cluster_toml_reads() -> None:
    text = links_toml(["a", "b", "c"], Uplink(1.25e6, 5000, 2.5, 0.5))
    links = [msgspec.convert(table, LinkConfig) for table in msgspec.toml.decode(text)["links"]]
    assert {(link.source, link.destination) for link in links} == {
        *(("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b"))
    }
    for link in links:
        shape = link.shape
        assert (shape.bytes_per_s, shape.burst_bytes, shape.latency_ms, shape.jitter_ms) == (1.25e6, 5000, 2.5, 0.5)
    free = msgspec.toml.decode(links_toml(["a", "b"], Uplink()))["links"]
    assert msgspec.convert(free[0], LinkConfig).shape.bytes_per_s == 0


def test_the_table_and_the_json_say_the_same() -> None:
    assert describe(ROWS).splitlines() == [
        "way       tokens_per_s  ms_per_token  failed",
        "loopback  100           9.876         0",
        "emulated  10            -             0",
    ]
    found = json.loads(json.dumps(as_json(Setting(model=Path("/x/m"), devices=2, uplink=Uplink(1.0)), ROWS)))
    assert (found["setting"]["model"], found["setting"]["uplink"]["bytes_per_s"]) == ("m", 1.0)
    assert found["ways"] == ROWS


@pytest.mark.cluster
def test_emulated_links_slow_a_real_cluster_down(tmp_path: Path) -> None:
    setting = Setting(model=MODEL_DIR, devices=2, uplink=Uplink(latency_ms=30.0), output_tokens=12, prompt_tokens=8)
    said: list[str] = []
    [row] = compare(["emulated"], setting, tmp_path, said.append)
    assert (row["way"], row["failed"]) == ("emulated", 0)
    assert row["ms_per_token"] >= 60.0, "there and back"
    assert said == ["emulated: starting 2 devices"]


@pytest.mark.cluster
def test_namespaces_serve(tmp_path: Path) -> None:
    setting = Setting(model=MODEL_DIR, devices=2, uplink=Uplink(1.25e6), output_tokens=12, prompt_tokens=8)
    try:
        [row] = compare(["namespaces"], setting, tmp_path, lambda _: None)
    except NamespacesUnavailable as problem:
        pytest.skip(str(problem))
    assert row["failed"] == 0
    assert row["tokens_per_s"] > 0
