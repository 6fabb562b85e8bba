"""Which numbers a plan is made from: testbed, catalogue, profile, this machine; flags before files before defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import BadCheckpoint, ConfigError
from edgectl.plan_inputs import AUTO_SESSIONS, PlanInputs, PlanOptions, resolve
from edgectl.profiled_model import ProfiledModel, config_of, profiled_model
from planner.errors import BadLinks, BadProfile, UnknownName
from planner.profile import ClusterProfile
from planner.types import Quantization
from tests.fakes.measured_devices import SPEC, cluster_profile
from tests.fakes.stored_profiles import model_directory, stored


def never(*_: object) -> ClusterProfile:
    raise AssertionError("this machine must not be measured")


def inputs(env: Mapping[str, str] | None = None, **options: Any) -> PlanInputs:
    return resolve(PlanOptions(**options), env or {}, never)


# --- testbed ----------------------------------------------------------------------------------------------------------


def test_a_testbed_carries_its_settings() -> None:
    found = inputs(model="llama2-7b", testbed="edgeshard-paper")
    work = found.request.workload
    assert (work.quantization, work.codec, work.prompt, work.tokens) == ("fp32", "fp32", 1, 96)
    assert (work.sessions, work.context, found.request.source) == (8, 128, "agx-0")
    assert "edgeshard-paper" in found.title
    assert found.said == ()


def test_flags_come_before_the_testbed() -> None:
    found = inputs(
        model="llama2-7b", testbed="edgeshard-paper", prompt=32, tokens=64, batch=2, codec="fp16", source="agx-3"
    )
    work = found.request.workload
    assert (work.prompt, work.tokens, work.sessions, work.codec, work.context) == (32, 64, 2, "fp16", 128)
    assert found.request.source == "agx-3"
    assert found.request.batch == 2


def test_unknown_testbeds_and_models_of_them() -> None:
    with pytest.raises(UnknownName, match="did you mean edgeshard-paper"):
        inputs(model="llama2-7b", testbed="edgeshard")
    with pytest.raises(UnknownName, match="did you mean llama2-13b"):
        inputs(model="llama-13b", testbed="edgeshard-paper")
    with pytest.raises(ValueError, match="--quantize int4: testbed edgeshard-paper has times of fp32 weights alone"):
        inputs(model="llama2-7b", testbed="edgeshard-paper", quantization="int4")


# --- catalogue --------------------------------------------------------------------------------------------------------


def test_devices_of_the_catalogue_are_estimates_and_say_so() -> None:
    found = inputs(model="llama3-8b", devices="orin-nx-16gb*2,rtx-3090")
    profile, work = found.request.profile, found.request.workload
    assert [device.name for device in profile.devices] == ["orin-nx-16gb-0", "orin-nx-16gb-1", "rtx-3090"]
    assert all(device.estimated for device in profile.devices)
    assert (work.quantization, work.prompt, work.tokens, work.context, work.sessions) == ("int4", 32, 96, 4096, 1)
    assert any("estimates from data sheets" in sentence for sentence in found.said)
    assert any("Gigabit Ethernet" in sentence for sentence in found.said)


def test_a_model_that_cannot_be_served_says_so() -> None:
    assert "aya-23-8b is for planning alone: CohereForCausalLM" in inputs(model="aya-23-8b", devices="rtx-3090").said[0]
    assert not any("planning alone" in sentence for sentence in inputs(model="llama3-8b", devices="rtx-3090").said)


def test_auto_batches_throughput() -> None:
    assert inputs(model="llama3-8b", devices="rtx-3090", objective="throughput").request.workload.sessions == (
        AUTO_SESSIONS
    )
    assert inputs(model="llama3-8b", devices="rtx-3090", objective="throughput", batch=3).request.workload.sessions == 3


def test_context_grows_with_what_is_asked_for_and_stops_at_the_model() -> None:
    assert inputs(model="llama3-8b", devices="rtx-3090", prompt=6000).request.workload.context == 6096
    with pytest.raises(ValueError, match="--context 9000 exceeds the 8192 positions of llama3-8b"):
        inputs(model="llama3-8b", devices="rtx-3090", context=9000)
    with pytest.raises(ValueError, match="exceed the context of 100"):
        inputs(model="llama3-8b", devices="rtx-3090", context=100)


def test_links_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "links.toml"
    file.write_text('[[links]]\nfrom = "rtx-3090"\nto = "rtx-4090"\nbandwidth_mbit_per_s = 80\nlatency_ms = 3\n')
    found = inputs(model="llama3-8b", devices="rtx-3090,rtx-4090,rtx-3060", links=file)
    pairs = {(link.source, link.destination) for link in found.request.profile.links}
    assert pairs == {("rtx-3090", "rtx-4090"), ("rtx-4090", "rtx-3090")}, "what the file leaves out is no link"
    assert not any("Gigabit" in sentence for sentence in found.said)
    file.write_text('[[links]]\nfrom = "rtx-3090"\nto = "rtx-490"\nbandwidth_mbit_per_s = 80\nlatency_ms = 3\n')
    with pytest.raises(BadLinks, match=r"links\.toml.*links\[0\]\.to.*did you mean rtx-4090"):
        inputs(model="llama3-8b", devices="rtx-3090,rtx-4090", links=file)
    with pytest.raises(ConfigError, match=r"--links .*nowhere\.toml"):
        inputs(model="llama3-8b", devices="rtx-3090", links=tmp_path / "nowhere.toml")


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_a_profile_that_is_named(tmp_path: Path) -> None:
    path, env = stored(tmp_path, cluster_profile())
    found = inputs(env, model=str(model_directory(tmp_path)), profile=path)
    work = found.request.workload
    assert (work.quantization, work.block_size, work.codec) == ("int4", 32, "fp16")
    assert found.request.profile.model == "m"
    assert path.name in found.title


def test_the_newest_profile_of_the_model_without_a_flag(tmp_path: Path) -> None:
    stored(tmp_path, cluster_profile(created="2026-11-20T12:00:00Z"))
    newest, env = stored(tmp_path, cluster_profile({"a": 3.0}, created="2026-11-21T12:00:00Z"))
    stored(tmp_path, replace(cluster_profile(created="2026-11-22T12:00:00Z"), model="other"))
    found = inputs(env, model=str(model_directory(tmp_path)))
    assert newest.name in found.title
    assert found.request.profile == cluster_profile({"a": 3.0}, created="2026-11-21T12:00:00Z")


def test_links_of_a_file_replace_measured_ones_that_they_name(tmp_path: Path) -> None:
    path, env = stored(tmp_path, cluster_profile())
    before = {(link.source, link.destination): link for link in cluster_profile().links}
    a, b = next(iter(before))
    file = tmp_path / "links.json"
    entry = {"from": a, "to": b, "bandwidth_mbit_per_s": 8, "latency_ms": 9, "both_ways": False}
    file.write_text(json.dumps({"links": [entry]}))
    found = inputs(env, model=str(model_directory(tmp_path)), profile=path, links=file)
    after = {(link.source, link.destination): link for link in found.request.profile.links}
    assert after.keys() == before.keys()
    assert [pair for pair in after if after[pair] != before[pair]] == [(a, b)]


def test_a_profile_of_another_model_or_other_weights(tmp_path: Path) -> None:
    path, env = stored(tmp_path, cluster_profile())
    with pytest.raises(BadProfile, match=r"model: is m, the plan is for llama2-7b"):
        inputs(env, model="llama2-7b", profile=path)
    other = model_directory(tmp_path / "other", "m")
    (other / "config.json").write_text(json.dumps(config_of(replace(SPEC, num_layers=4, sliding_windows=(None,) * 4))))
    with pytest.raises(BadProfile, match="spec: describes another m"):
        inputs(env, model=str(other), profile=path)


def test_a_profile_of_another_schema(tmp_path: Path) -> None:
    path, env = stored(tmp_path, cluster_profile())
    values = json.loads(path.read_text())
    values["schema"] = 99
    path.write_text(json.dumps(values))
    with pytest.raises(BadProfile, match=r"schema: is 99, this version reads 1"):
        inputs(env, model=str(model_directory(tmp_path)), profile=path)


def test_a_stale_profile_is_said(tmp_path: Path) -> None:
    path, env = stored(tmp_path, replace(cluster_profile(), version="0.0.1", created="2020-01-01T00:00:00Z"))
    said = inputs(env, model=str(model_directory(tmp_path)), profile=path).said
    assert any(sentence.startswith("stale: measured by edgectl 0.0.1") for sentence in said)
    assert any("days ago" in sentence for sentence in said)


def test_without_a_profile_this_machine_is_measured_and_said(tmp_path: Path) -> None:
    asked: list[tuple[str, Quantization, int]] = []

    def measure(model: ProfiledModel, quantization: Quantization, block_size: int) -> ClusterProfile:
        asked.append((model.name, quantization, block_size))
        return replace(cluster_profile(), quantization=quantization, block_size=block_size)

    env = {"STATE_DIRECTORY": str(tmp_path), "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    found = resolve(PlanOptions(model=str(model_directory(tmp_path))), env, measure)
    assert asked == [("m", "int4", 128)]
    assert any("planned for this machine alone" in sentence for sentence in found.said)


# --- models and flags -------------------------------------------------------------------------------------------------


def test_any_config_json_will_do(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    renamed = tmp_path / "mine.json"
    renamed.write_text((directory / "config.json").read_text())
    for text, name in ((directory, "m"), (directory / "config.json", "m"), (renamed, "mine")):
        profile = inputs(model=str(text), devices="rtx-3090").request.profile
        assert (profile.model, profile.spec) == (name, profiled_model(str(directory)).spec)


@pytest.mark.parametrize(
    ("content", "text"), [(None, "no such file"), ("{", "not a config.json"), ("[]", "must hold an object")]
)
def test_files_that_are_no_model(tmp_path: Path, content: str | None, text: str) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Exception, match=text) as refused:
        inputs(model=str(path), devices="rtx-3090")
    assert hasattr(refused.value, "code"), "an error of the table"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean llama2-7b"):
        inputs(model="llama2-7", devices="rtx-3090")
    with pytest.raises((BadCheckpoint, UnknownName)):
        inputs(model=str(tmp_path / "nowhere"), devices="rtx-3090")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"devices": "rtx-3090", "testbed": "edgeshard-paper"}, "--testbed and --devices both say"),
        ({"devices": "rtx-3090", "prompt": -4}, "--prompt must be at least 1, it is -4"),
        ({"devices": "rtx-3090", "tokens": 0}, "--tokens must be at least 1, it is 0"),
        ({"devices": "rtx-3090", "batch": -1}, "--batch must be at least 1"),
        ({"devices": "rtx-3090", "context": -1}, "--context must be at least 1"),
        ({"devices": "rtx-3090", "block_size": 0}, "--block-size must be at least 1"),
        ({"devices": "rtx-3090", "source": ""}, "--source is empty"),
        ({"devices": "rtx-3090", "model": ""}, "--model is empty"),
        ({"devices": "rtx-3090", "replicas": True}, "replicas raise throughput"),
    ],
)
def test_wrong_flags_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        inputs(**{"model": "llama3-8b", **options})


def test_privacy_none_leaves_the_source_free_unless_it_is_named() -> None:
    free = inputs(model="llama2-7b", testbed="edgeshard-paper", privacy="none")
    named = inputs(model="llama2-7b", testbed="edgeshard-paper", privacy="none", source="nx-0")
    assert free.request.source is None
    assert named.request.source == "nx-0"
