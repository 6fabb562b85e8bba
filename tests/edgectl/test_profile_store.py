"""Profiles on disk: never half a file, the newest first, and when one no longer describes its devices."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.profile_store import (
    MAX_AGE_DAYS,
    file_name,
    fingerprints_here,
    load_profile,
    newest_profile,
    profiles_directory,
    save_profile,
    staleness,
)
from planner.errors import BadProfile
from tests.fakes.measured_devices import cluster_profile

AT = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    profile = cluster_profile()
    path = save_profile(profile, tmp_path / "state" / "profiles")
    assert path.name == file_name(profile) == "m-int4-20261121T120000Z.json"
    assert load_profile(path) == profile
    assert list(path.parent.iterdir()) == [path]


def test_a_file_may_be_named(tmp_path: Path) -> None:
    assert save_profile(cluster_profile(), tmp_path / "mine.json") == tmp_path / "mine.json"


def test_a_directory_that_cannot_be_written_says_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        save_profile(cluster_profile(), tmp_path / "file" / "mine.json")


def test_the_newest_of_the_model_and_quantization_that_are_asked_for(tmp_path: Path) -> None:
    old = cluster_profile(created="2026-11-20T12:00:00Z")
    new = cluster_profile({"a": 3.0}, created="2026-11-21T12:00:00Z")
    int8 = replace(cluster_profile(created="2026-11-19T12:00:00Z"), quantization="int8")
    longer = cluster_profile(model="m-2", created="2026-11-22T12:00:00Z")
    for profile in (new, int8, old, longer):
        save_profile(profile, tmp_path)
    (tmp_path / "notes.txt").write_text("no profile")

    def found(model: str | None = None, quantization: str | None = None) -> object:
        newest = newest_profile(tmp_path, model, quantization)  # type: ignore[arg-type]
        return newest.profile if newest is not None else None

    assert found() == longer
    assert found("m") == new
    assert found("m", "int4") == new
    assert found("m", "int8") == int8
    assert found(None, "int8") == int8
    assert found("m", "fp16") is None
    assert found("other") is None
    assert newest_profile(tmp_path / "absent") is None


def test_a_model_of_the_hub_has_a_file_name_too(tmp_path: Path) -> None:
    profile = cluster_profile(model="owner/name")
    path = save_profile(profile, tmp_path)
    assert path.parent == tmp_path
    newest = newest_profile(tmp_path, "owner/name")
    assert newest is not None
    assert newest.path == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema"),
        ({"devices": []}, "devices"),
        ({"quantization": "int3"}, "quantization"),
    ],
)
def test_a_broken_profile_is_named_with_its_field(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = save_profile(cluster_profile(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadProfile, match=message) as raised:
        load_profile(path)
    assert str(path) in str(raised.value)
    with pytest.raises(BadProfile):
        newest_profile(tmp_path, "m")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json.*edgectl profile"):
        load_profile(tmp_path / "absent.json")


def test_the_directory_is_that_of_the_cluster_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert profiles_directory(env) == tmp_path / "state" / "edgectl" / "profiles"
    (tmp_path / "cluster.toml").write_text('[coordinator]\nstate_dir = "here"\n')
    assert profiles_directory(env).resolve() == tmp_path / "here" / "profiles"
    with pytest.raises(ConfigError, match="no such file"):
        profiles_directory(env, tmp_path / "absent.toml")


def test_a_fresh_profile_of_unchanged_devices_is_not_stale() -> None:
    profile = cluster_profile()
    now = {device.name: device.fingerprint for device in profile.devices}
    assert staleness(profile, now, version="1.0.0", at=AT) == []
    assert staleness(profile, {}, version="1.0.0") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"power_mode": "30W"}, "a: power mode was MAXN, it is 30W now"),
        ({"board": "Jetson Orin NX"}, "a: board was Jetson AGX Orin, it is Jetson Orin NX now"),
    ],
)
def test_a_device_that_changed_is_named(change: dict[str, str | float | None], reason: str) -> None:
    profile = cluster_profile()
    other: dict[str, str | float | None] = {"power_mode": "10W"}
    now = {"a": {**profile.devices[0].fingerprint, **change}, "unknown": other}
    assert staleness(profile, now, version="1.0.0") == [reason]


@pytest.mark.parametrize("change", [{"temperature_c": 80.0}, {"power_mode": None}, {"kernel": "6.1"}])
def test_what_varies_by_itself_or_is_unknown_does_not_count(change: dict[str, str | float | None]) -> None:
    profile = cluster_profile()
    now = {"a": {**profile.devices[0].fingerprint, **change}}
    assert staleness(profile, now, version="1.0.0") == []


def test_another_version_and_age_count() -> None:
    profile = cluster_profile()
    assert staleness(profile, {}, version="1.1.0") == ["measured by edgectl 1.0.0, this is 1.1.0"]
    assert staleness(profile, {}, version="1.0.0", at=AT + timedelta(days=MAX_AGE_DAYS)) == []
    assert staleness(profile, {}, version="1.0.0", at=AT + timedelta(days=MAX_AGE_DAYS + 1)) == [
        f"measured {MAX_AGE_DAYS + 1} days ago"
    ]
    assert staleness(replace(profile, created="last week"), {}, version="1.0.0", at=AT) == []


def test_this_machine_speaks_for_the_devices_that_were_measured_in_this_boot() -> None:
    profile = cluster_profile()
    assert fingerprints_here(profile, {"board": "here"}, "a") == {"a": {"board": "here"}}
