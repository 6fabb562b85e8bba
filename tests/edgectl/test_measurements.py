"""What is asked of devices and links, and what may run at the same time."""

from __future__ import annotations

import json
from dataclasses import replace

from edgectl.measurements import (
    DEVICE_S,
    QUICK_DEVICE_S,
    QUICK_LINK_S,
    Settings,
    Task,
    may_begin,
    settings_for,
    tasks_for,
)
from edgectl.profiled_model import config_of
from planner.model_spec import ModelSpec
from tests.fakes.measured_devices import SPEC

HOSTS = {"a": "x", "b": "x", "c": "y", "d": "z"}


def settings(spec: ModelSpec = SPEC, *, quick: bool = False, seconds: float | None = None) -> Settings:
    return settings_for(
        "m",
        json.dumps(config_of(spec)),
        spec,
        quantization="fp32",
        block_size=32,
        quick=quick,
        seconds=seconds,
    )


def test_devices_come_first_and_every_ordered_pair_after_them() -> None:
    tasks = tasks_for(("b", "a"), (), "abc")
    assert [str(task) for task in tasks] == ["a", "b", "a → b", "b → a"]


def test_of_known_devices_only_the_links_to_wanted_ones_are_measured() -> None:
    tasks = tasks_for(("b",), ("a", "c"), "abc")
    assert [str(task) for task in tasks] == ["b", "a → b", "b → a", "b → c", "c → b"]


def test_two_measurements_never_share_a_host() -> None:
    assert may_begin(Task("c"), [Task("c")], [Task("a")], HOSTS)
    assert not may_begin(Task("b"), [Task("b")], [Task("a")], HOSTS)
    assert not may_begin(Task("c", "d"), [Task("c", "d")], [Task("a", "c")], HOSTS)
    assert not may_begin(Task("b", "d"), [Task("b", "d")], [Task("a", "c")], HOSTS)


def test_a_link_waits_for_every_device_even_of_other_hosts() -> None:
    assert not may_begin(Task("c", "d"), [Task("c", "d")], [Task("a")], HOSTS)
    assert not may_begin(Task("c", "d"), [Task("a"), Task("c", "d")], [], HOSTS)
    assert may_begin(Task("c", "d"), [Task("c", "d")], [Task("a", "b")], HOSTS)


def test_quick_asks_for_less_and_keeps_its_promise_of_a_minute_for_three_devices_of_one_machine() -> None:
    whole, quick = settings(), settings(quick=True)
    assert set(quick.rows) < set(whole.rows)
    assert len(quick.prompts) < len(whole.prompts)
    assert (whole.device_s, quick.device_s) == (DEVICE_S, QUICK_DEVICE_S)
    assert 3 * quick.device_s + 6 * quick.link_s <= 50
    assert settings(quick=True, seconds=1.0).device_s == 1.0
    assert settings(quick=True, seconds=1.0).link_s == min(1.0, QUICK_LINK_S)


def test_no_point_is_beyond_the_positions_a_model_has() -> None:
    short = settings(replace(SPEC, max_positions=100))
    assert short.contexts == (32, 99)
    assert short.prompts == (4, 16, 32, 64, 99)
    assert max(settings(replace(SPEC, max_positions=4096)).contexts) == 2048


def test_frames_are_those_of_the_model() -> None:
    assert settings().sizes == ((1, 64), (8, 64), (32, 64), (128, 64))
    assert settings().codec == "fp16"
