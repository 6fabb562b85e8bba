"""Profiles as files: what goes out comes back, and nothing else comes in."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadProfile, PlannerError
from planner.profile import MemoryCheck
from planner.profile_json import dump_profile, parse_profile
from planner.testbed import load_testbed
from tests.fakes.random_profiles import plain_device, plain_profile, random_profile


@pytest.mark.parametrize("seed", range(30))
def test_round_trip(seed: int) -> None:
    profile = random_profile(random.Random(seed))
    text = dump_profile(profile)
    parsed = parse_profile(text)
    assert dump_profile(parsed) == text
    assert parsed.spec == profile.spec
    for ours, read in zip(profile.devices, parsed.devices, strict=True):
        assert read.memory_bytes == ours.memory_bytes
        for a, b in zip(ours.decode, read.decode, strict=True):
            assert b.layer.ms == pytest.approx(a.layer.ms, rel=1e-5)


def test_everything_a_device_says_comes_back() -> None:
    device = plain_device(
        "a",
        fingerprint={"board": "p3701", "cpu_mhz": 2201.6, "jetpack": None},
        missing={"jetpack": "no /etc/nv_tegra_release"},
        memory=MemoryCheck(measured_bytes=5, formula_bytes=6),
    )
    profile = replace(plain_profile(device), created="2026-01-02T03:04:05Z", version="0.1.0")
    assert parse_profile(dump_profile(profile)) == profile


def test_the_model_is_not_rounded() -> None:
    profile = load_testbed("edgeshard-paper", "llama2-7b").profile
    exact = replace(profile.spec, rms_norm_eps=1.23456789e-6)
    assert parse_profile(dump_profile(replace(profile, spec=exact))).spec == exact


def test_the_text_is_stable() -> None:
    text = dump_profile(plain_profile(plain_device("a"), plain_device("b")))
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert json.loads(text)["schema"] == 1


def test_unknown_keys_are_left_alone() -> None:
    raw = written()
    raw["from_a_newer_version"] = raw["devices"][0]["weather"] = "sunny"
    parse_profile(json.dumps(raw))


def written() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(dump_profile(plain_profile(plain_device("a"), plain_device("b"))))
    return table


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("schema",), 2, "schema: is 2, this version reads 1"),
        (("schema",), None, "schema"),
        (("schema",), True, "schema"),
        (("devices",), [], "devices: a profile needs at least one"),
        (("devices", 1, "name"), "a", "devices: a is there twice"),
        (("devices", 1, "memory_bytes"), -5, "devices[1]: memory_bytes must be a positive number, it is -5"),
        (("devices", 1, "memory_bytes"), 1.5, "devices[1].memory_bytes"),
        (("devices", 1, "memory_bytes"), 10**30, "devices[1].memory_bytes"),
        (("devices", 1, "stage_ms"), -1, "devices[1]: stage_ms"),
        (("devices", 1, "stage_ms"), "fast", "devices[1].stage_ms"),
        (("devices", 0, "decode"), [], "devices[0]: decode needs at least one point"),
        (("devices", 0, "decode", 0, "layer", "ms"), 0, "devices[0].decode[0].layer: ms must be a positive number"),
        (("devices", 0, "decode", 0, "layer", "ms"), 1e300, "devices[0].decode[0].layer.ms"),
        (("devices", 0, "decode", 0, "rows"), 0, "devices[0].decode[0]: rows"),
        (("devices", 0, "power"), {"idle_w": 1}, "devices[0].power"),
        (("links", 0, "bandwidth_bytes_per_s"), 0, "links[0]: bandwidth_bytes_per_s must be a positive number"),
        (("links", 0, "bandwidth_bytes_per_s"), 1e-300, "links[0].bandwidth_bytes_per_s: must be at least"),
        (("links", 0, "latency_ms"), -1, "links[0]: latency_ms"),
        (("links", 0, "source"), "c", "links: c is not among the devices: a, b"),
        (("links", 0, "destination"), "a", "links[0]: a link from a to itself"),
        (("quantization",), "int2", "quantization"),
        (("block_size",), 0, "block_size"),
        (("spec", "num_layers"), 0, "spec.num_layers"),
        (("spec", "hidden_size"), 10**9, "spec.hidden_size"),
        (("spec", "sliding_windows"), [None], "spec.sliding_windows: 1 entries for 6 layers"),
        (("spec", "architecture"), "gpt", "spec.architecture"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[str | int, ...], value: object, named: str) -> None:
    raw: Any = written()
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BadProfile) as caught:
        parse_profile(json.dumps(raw))
    assert named in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_number_that_json_does_not_have_is_shown_with_its_key(value: float) -> None:
    raw = written()
    raw["devices"][1]["stage_ms"] = value
    with pytest.raises(BadProfile, match=r'line \d+: .*"stage_ms": (NaN|-Infinity)'):
        parse_profile(json.dumps(raw, indent=2))


@pytest.mark.parametrize("key", ["model", "spec", "devices", "links", "quantization"])
def test_a_missing_field_is_named(key: str) -> None:
    raw = written()
    del raw[key]
    with pytest.raises(BadProfile, match=key):
        parse_profile(json.dumps(raw))


def test_what_is_there_twice_is_named() -> None:
    raw = written()
    raw["links"].append(raw["links"][0])
    with pytest.raises(BadProfile, match="links: a to b is there twice"):
        parse_profile(json.dumps(raw))
    raw = written()
    raw["devices"][1]["prefill"] *= 2
    with pytest.raises(BadProfile, match=r"devices\[1\].prefill: two points for 1"):
        parse_profile(json.dumps(raw))


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '"x"', "NaN", '{"schema": NaN}', "[" * 200_000, '{"a":' * 99999]
)
def test_what_is_no_profile(text: str) -> None:
    with pytest.raises(BadProfile):
        parse_profile(text)


@given(st.text(max_size=200))
def test_any_text_gives_a_clear_error(text: str) -> None:
    with pytest.raises(PlannerError):
        parse_profile(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data(), json_values)
def test_any_value_at_any_place_is_read_or_refused(data: st.DataObject, value: object) -> None:
    raw: Any = written()
    place = raw
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        inner = place[key]
        if not inner or not isinstance(inner, (dict, list)) or data.draw(st.booleans()):
            break
        place = inner
    place[key] = value
    try:
        profile = parse_profile(json.dumps(raw))
    except BadProfile:
        return
    parse_profile(dump_profile(profile))
